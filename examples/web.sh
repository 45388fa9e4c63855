#!/bin/sh
# user_data for a VM: a web server on port 8080 with one page.
mkdir -p /www
echo "Hello from $(hostname)" > /www/index.html
httpd -p 8080 -h /www
