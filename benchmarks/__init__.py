"""Speed compared with other libraries: `make bench`, `python -m benchmarks.input` and others."""

import os

# The command line sets the same, before JAX is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
