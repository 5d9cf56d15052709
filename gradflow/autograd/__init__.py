"""Automatic differentiation: the graph of recorded operations, and the backward pass through it."""
