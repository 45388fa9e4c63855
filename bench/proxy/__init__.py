"""`make bench-proxy`: what a request costs the proxy, against proxies that do the same job."""
