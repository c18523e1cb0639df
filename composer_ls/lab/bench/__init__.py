"""Benchmarks of the loss against other implementations: time and memory of a forward and backward pass."""
