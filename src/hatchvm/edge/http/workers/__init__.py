"""The proxy in processes of its own, which ask the daemon over a socket what they do not know."""
