"""The daemon's side of the proxy workers: keeps them running, and serves each of them a gate."""
