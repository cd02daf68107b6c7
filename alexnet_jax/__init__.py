"""AlexNet of 2012 as two towers in JAX."""
