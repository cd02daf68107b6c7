"""Hand-written derivatives of operations, and how to do without them.

The VJPs of the operations save memory and time in the train step. They know reverse mode only, and
those of the exchanges rely on what the train step does: each tower differentiates its share of the
loss. Code outside the train step may need forward mode too, and knows nothing
of shares: inside `plain_derivatives` JAX differentiates the operations itself.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

_plain = contextvars.ContextVar("_plain", default=False)


@contextlib.contextmanager
def plain_derivatives() -> Iterator[None]:
    """A context in which traced operations have the derivatives that JAX finds for them."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def are_plain() -> bool:
    """Returns whether `plain_derivatives` is in effect."""
    return _plain.get()


_for_cpu = contextvars.ContextVar("_for_cpu", default=False)


def for_cpu(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, traced for a CPU alone: without the forms of other platforms, sooner."""

    @functools.wraps(fn)
    def traced(*args: Any) -> Any:
        token = _for_cpu.set(True)
        try:
            return fn(*args)
        finally:
            _for_cpu.reset(token)

    return traced


def are_for_cpu() -> bool:
    """Returns whether what is traced is for a CPU alone, by `for_cpu`."""
    return _for_cpu.get() and not are_plain()


def by_platform(*args: Any, default: Callable[..., Any], **platforms: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, which inside `plain_derivatives` chooses the default.

    The forms for one platform have derivatives of their own. Inside `for_cpu` no other is traced.
    """
    if are_plain():
        return default(*args)
    if _for_cpu.get():
        return platforms.get("cpu", default)(*args)
    return lax.platform_dependent(*args, default=default, **platforms)


class custom_vjp:
    """`jax.custom_vjp`, which inside `plain_derivatives` is an ordinary function."""

    def __init__(
        self,
        fun: Callable[..., Any],
        nondiff_argnums: tuple[int, ...] = (),
        plain: Callable[..., Any] | None = None,
    ):
        """Takes the arguments of `jax.custom_vjp`, and one more.

        Args:
          fun: the operation.
          nondiff_argnums: positions of the arguments that are not differentiated.
          plain: the same operation for `plain_derivatives`, if it is not `fun` itself.
        """
        functools.update_wrapper(self, fun)
        self._ordinary = plain or fun
        self._custom: Any = jax.custom_vjp(fun, nondiff_argnums)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """See `jax.custom_vjp.defvjp`."""
        self._custom.defvjp(fwd, bwd)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the operation."""
        return (self._ordinary if are_plain() else self._custom)(*args, **kwargs)
