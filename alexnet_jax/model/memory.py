"""Which values are kept in memory between the forward and the backward pass."""

from jax import lax

stored = lax.optimization_barrier
"""Marks a value to be computed once and kept in memory. XLA would otherwise recompute a sum of
squares wherever it is read, which costs more time than the memory is worth."""
