"""dst-bench: how fast training, inference and serving are on this machine."""
