"""Speed beside other libraries: `make bench`; `python -m benchmarks.input`, `.ops`, `.start`."""

import os

# As the command line sets it, before JAX is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
