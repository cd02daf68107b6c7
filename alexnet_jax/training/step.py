"""The train step: forward pass, backward pass and update of one tower, as a pure function."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data.inputs import Inputs
from alexnet_jax.model import collectives
from alexnet_jax.model.tower import Tower
from alexnet_jax.parallel.exchange import CHECK
from alexnet_jax.training.metrics import top_errors
from alexnet_jax.training.skip import apply_if
from alexnet_jax.training.state import TrainState


def make_train_step(
    config: ConfigDict,
    tower: Tower,
    inputs: Inputs,
    tx: optax.GradientTransformationExtraArgs,
    placement: parallel.Placement,
    steps_per_epoch: int,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Compiles one step for every tower and part of the batch.

    The batch holds `image`, `label`, `colour` and `index` (see `data.pipeline`). The metrics are
    means over the global batch, computed before the update, and `not_finite`: int32 `[n]`, the
    number of towers in which each gradient (in the order of `jax.tree.leaves`) and last the loss
    holds a NaN or an infinity. If any does, only the number of the step changes, for schedules too.

    With `config.accumulate_steps` a device works through its share of the batch in that many parts,
    in the memory of one; the update is the same. Gradients of the layers in `config.freeze` are not
    computed: the update rule sees zeros for them, and their parameters stay as they are.
    """
    noisy_steps = config.data.colour.until_epoch * steps_per_epoch or math.inf
    # Gradients have the type of the parameters, which is sent as it is unless a narrower one is
    # asked for.
    sent_as = jnp.bfloat16 if config.gradient_sum_dtype == "bfloat16" else None

    def one_pass(state: TrainState, batch: dict) -> tuple[dict, dict, dict]:
        """Gradients and sums of metrics over this share of the batch, and the new statistics."""
        images = inputs.train(batch, noise=state.step < noisy_steps)
        dropout_key = jax.random.fold_in(jax.random.key(state.seed), 1)
        step_key = jax.random.fold_in(dropout_key, state.step)
        trained, frozen = split_frozen(state.params)

        def loss_fn(trained: dict) -> tuple[jax.Array, tuple]:
            logits: Any
            logits, changed = tower.apply(
                {"params": trained | frozen, "batch_stats": state.batch_stats},
                images,
                step_key,
                batch["index"],
                sum_over_data=placement.sum_over_data,
                frozen=tuple(config.freeze),
                mutable=["batch_stats"],
            )
            # One-hot labels, since the gradient of picking one logit per image would be a scatter.
            one_hot = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
            losses = optax.softmax_cross_entropy(logits, one_hot)
            loss = jnp.sum(losses) / config.batch_size
            # Every tower computes the same loss, and the transposes of psum and all_gather add up
            # the gradients of all towers: each must differentiate its share only.
            return loss / tower.towers, (logits, losses, changed.get("batch_stats", {}))

        gradients, (logits, losses, statistics) = jax.grad(loss_fn, has_aux=True)(trained)
        top1, top5 = top_errors(logits, batch["label"])
        sums = {"loss": losses.sum(), "top1_error": top1.sum(), "top5_error": top5.sum()}
        return gradients, sums, statistics

    def split_frozen(params: dict) -> tuple[dict, dict]:
        frozen = {name: params[name] for name in params if name in config.freeze}
        return {name: params[name] for name in params if name not in frozen}, frozen

    def accumulated(state: TrainState, batch: dict) -> tuple[dict, dict, dict]:
        parts = config.accumulate_steps
        if parts == 1:
            return one_pass(state, batch)
        # Gradients and metrics are sums over examples, and random draws depend on the example, so
        # the parts add up to the same result. A network with running statistics, which would not
        # add up, is refused by `config.rules`.
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        first = jax.eval_shape(one_pass, state, jax.tree.map(lambda x: x[0], batch))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

        def add(total: tuple, part: dict) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, total, one_pass(state, part)), None

        return jax.lax.scan(add, zeros, batch)[0]

    def not_finite(gradients: dict, loss: jax.Array) -> jax.Array:
        # A sum is finite if every term is, and XLA adds faster than it tests each term.
        sums = jnp.stack([jnp.sum(g) for g in jax.tree.leaves(gradients)] + [loss])
        with jax.named_scope(CHECK):
            return collectives.sum_over_towers((~jnp.isfinite(sums)).astype(jnp.int32))

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        trained, frozen = split_frozen(state.params)
        gradients, sums, statistics = accumulated(state, batch)
        gradients = placement.sum_over_data(gradients, sent_as)
        sums = placement.sum_over_data(sums)
        gradients = gradients | jax.tree.map(jnp.zeros_like, frozen)
        wrong = not_finite(gradients, sums["loss"])

        def update(trained: dict, opt_state: Any) -> tuple[dict, Any]:
            updates: Any
            updates, opt_state = tx.update(
                gradients, opt_state, trained | frozen, rate_scale=state.rate_scale
            )
            return {name: updates[name] for name in trained}, opt_state

        ok = jnp.all(wrong == 0)
        trained, opt_state = apply_if(ok, update, trained, state.opt_state)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=trained | frozen,
            batch_stats=jax.tree.map(
                lambda new, old: jnp.where(ok, new, old), statistics, state.batch_stats
            ),
            opt_state=opt_state,
        )
        means = jax.tree.map(lambda x: x / config.batch_size, sums)
        return new_state, means | {"not_finite": wrong}

    return placement.spread(train_step, ("tower", "batch"), ("tower", "same"), donate=(0,))
