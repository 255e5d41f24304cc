"""Two models on the same pictures: what changed, where, and whether chance explains it."""
