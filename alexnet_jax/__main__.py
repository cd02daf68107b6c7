"""`python -m alexnet_jax`: see `alexnet_jax.cli.main`."""

import sys

from alexnet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
