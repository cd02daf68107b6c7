"""The network in plain Flax: one device, grouped convolutions, no optimizations by hand."""

import argparse
import functools
import os
import sys

if "--tuned" in sys.argv:  # before JAX is imported: the flag that `parallel.prepare_host` sets
    os.environ["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from worker import serve


def local_response_norm(x: jax.Array) -> jax.Array:
    """Local response normalization, section 3.3 of the paper."""
    squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return x / (2.0 + 1e-4 * total) ** 0.75


class AlexNet(nn.Module):
    """The network of section 3.5 of the paper, with both towers as groups."""

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        """From images `[B, 224, 224, 3]` to logits `[B, 1000]`."""

        def pool(x: jax.Array) -> jax.Array:
            return nn.max_pool(x, (3, 3), (2, 2))

        x = nn.relu(nn.Conv(96, (11, 11), 4, padding=2)(x))
        x = pool(local_response_norm(x))
        x = nn.relu(nn.Conv(256, (5, 5), padding=2, feature_group_count=2)(x))
        x = pool(local_response_norm(x))
        x = nn.relu(nn.Conv(384, (3, 3), padding=1)(x))
        x = nn.relu(nn.Conv(384, (3, 3), padding=1, feature_group_count=2)(x))
        x = pool(nn.relu(nn.Conv(256, (3, 3), padding=1, feature_group_count=2)(x)))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096)(x))
            x = nn.Dropout(0.5, deterministic=not training)(x)
        return nn.Dense(1000)(x)


def main() -> None:
    """Builds the network and serves it to `run.py`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--tuned", action="store_true", help="XLA's Eigen convolutions; donation")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    x = jnp.array(generator.normal(0, 60, (args.batch_size, 224, 224, 3)), jnp.float32)
    y = jnp.array(generator.integers(0, 1000, args.batch_size))
    net = AlexNet()
    params = jax.jit(lambda key: net.init(key, x[:1], training=False))(jax.random.key(0))
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-4, momentum=0.9))
    state = [params, tx.init(params), jax.random.key(1)]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2) if args.tuned else ())
    def train_step(params, opt_state, key, x, y):
        key, use = jax.random.split(key)

        def loss_fn(params):
            logits = net.apply(params, x, training=True, rngs={"dropout": use})
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key

    @jax.jit
    def forward_step(params, x):
        return net.apply(params, x, training=False)

    def train(steps: int) -> None:
        for _ in range(steps):
            state[:] = train_step(*state, x, y)
        jax.block_until_ready(state)

    def forward(steps: int) -> None:
        for _ in range(steps):
            forward_step(state[0], x).block_until_ready()

    about = {"version": f"jax {jax.__version__}, {jax.default_backend()}"}
    serve({"train": train, "forward": forward}, about)


if __name__ == "__main__":
    main()
