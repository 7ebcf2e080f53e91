"""Sharding of weights, gradients and optimizer states among processes."""
