"""The network: one tower, its operations, and both towers merged into a single column."""
