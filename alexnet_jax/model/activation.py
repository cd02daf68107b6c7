"""Activation functions by the names that `config.model.activation` takes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alexnet_jax.model.memory import stored


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`, with gradient 0 at 0; the gradient needs the output only, not the input."""
    return jnp.maximum(x, 0)


def _relu_fwd(x):
    y = stored(relu(x))
    return y, y


def _relu_bwd(y, g):
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_fwd, _relu_bwd)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
