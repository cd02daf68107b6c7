"""The networks: `table` (what they are), `tower` (how one tower runs), `towers` (both as one)."""
