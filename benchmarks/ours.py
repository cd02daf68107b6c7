"""The training step and the forward pass of this project, as `train` and `evaluate` run them."""

import argparse

from worker import serve

from alexnet_jax import parallel
from alexnet_jax.config import presets


def main() -> None:
    """Builds the network and serves it to `run.py`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--placement", default="auto")
    args = parser.parse_args()
    config = presets.get(args.preset)
    config.batch_size = args.batch_size
    config.placement = args.placement
    parallel.prepare_host(config)
    # Imported only now, since importing the rest may start JAX's backend.
    import jax

    from alexnet_jax.analysis import bench

    steps = bench.build(config)
    about = {"version": f"jax {jax.__version__}", "placement": steps.placement.describe()}
    serve({"train": steps.train, "forward": steps.forward}, about)


if __name__ == "__main__":
    main()
