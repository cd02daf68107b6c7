"""The step, the loop, and the parts that act on a run."""
