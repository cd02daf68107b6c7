"""The train step, visible whole, and the run around it."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import evaluate as evaluation
from alexnet_jax import inputs as input_rules
from alexnet_jax import optim, parallel
from alexnet_jax import workdir as workdirs
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import validate
from alexnet_jax.data import pipeline, statistics
from alexnet_jax.data.sources import Source, open_source
from alexnet_jax.diagnose import Trace, Watch
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.metrics import MetricsLog, Progress
from alexnet_jax.models import tower as towers
from alexnet_jax.stopping import Stop


@flax.struct.dataclass
class TrainState:
    """What a step reads and writes; on the host every leaf has a leading axis of towers."""

    step: jax.Array
    params: dict
    opt_state: Any
    rate_scale: jax.Array  # the plateau schedule's drops so far, as a factor


def init_state(params: dict, tx: optax.GradientTransformation) -> TrainState:
    """A fresh state around stacked parameters, the same under any placement."""
    stack = jax.tree.leaves(params)[0].shape[0]
    # Under vmap the plain numbers of Optax's state too get one copy a tower.
    opt_state = jax.jit(jax.vmap(tx.init))(params)
    return TrainState(
        step=jnp.zeros([stack], jnp.int32),
        params=params,
        opt_state=opt_state,
        rate_scale=jnp.ones([stack], jnp.float32),
    )


def make_train_step(
    config: ConfigDict,
    tower: towers.Tower,
    inputs: input_rules.Inputs,
    tx: optax.GradientTransformationExtraArgs,
    placement: parallel.Placement,
    steps_per_epoch: int,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Compiles one step: forward, backward, update, for every tower and part of the batch.

    The batch holds `image`, `label`, `colour` and `index` (see `data.pipeline`). The metrics are
    means over the global batch, computed before the update. With `config.accumulate_steps` a
    device works through its share in so many parts, in the memory of one; the update is the same.
    """
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    noisy_steps = config.data.colour.until_epoch * steps_per_epoch or math.inf

    def gradients_and_sums(state: TrainState, batch: dict) -> tuple[dict, dict]:
        images = inputs.train(batch, noise=state.step < noisy_steps)
        step_key = jax.random.fold_in(dropout_key, state.step)

        def loss_fn(params: dict) -> tuple[jax.Array, tuple]:
            logits = tower.apply({"params": params}, images, step_key, batch["index"])
            # Of one-hot labels: the gradient of picking one logit an image would be a scatter.
            one_hot = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
            losses = optax.softmax_cross_entropy(logits, one_hot)
            loss = jnp.sum(losses) / config.batch_size
            # Every tower computes the same loss, and the transposes of psum and all_gather add up
            # what all towers ask of a value: each must ask for its share only.
            return loss / tower.towers, (logits, losses)

        gradients, (logits, losses) = jax.grad(loss_fn, has_aux=True)(state.params)
        top1, top5 = evaluation.top_errors(logits, batch["label"])
        sums = {"loss": losses.sum(), "top1_error": top1.sum(), "top5_error": top5.sum()}
        return gradients, sums

    def accumulated(state: TrainState, batch: dict) -> tuple[dict, dict]:
        parts = config.accumulate_steps
        if parts == 1:
            return gradients_and_sums(state, batch)
        # All are sums over examples, and draws go by example, so that parts add up exactly.
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        first = jax.eval_shape(gradients_and_sums, state, jax.tree.map(lambda x: x[0], batch))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

        def add(total: tuple, part: dict) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, total, gradients_and_sums(state, part)), None

        return jax.lax.scan(add, zeros, batch)[0]

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        gradients, sums = placement.sum_over_data(accumulated(state, batch))
        updates, opt_state = tx.update(
            gradients, state.opt_state, state.params, rate_scale=state.rate_scale
        )
        # The new velocity is stored before the weights change: otherwise XLA computes it again for
        # them, from copies of all that it has overwritten by then.
        updates, opt_state = jax.lax.optimization_barrier((updates, opt_state))
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            rate_scale=state.rate_scale,
        )
        return new_state, jax.tree.map(lambda x: x / config.batch_size, sums)

    return placement.spread(train_step, ("tower", "batch"), ("tower", "same"), donate=(0,))


@dataclasses.dataclass
class Plateau:
    """Drops the rate when the validation error stops falling (section 5), at most so many times."""

    best: float = math.inf
    stale: int = 0
    drops: int = 0

    def observe(self, error: float, optimizer: ConfigDict) -> float:
        """Takes the error of an evaluation; returns the factor on the rate from here on."""
        if error < self.best:
            self.best, self.stale = error, 0
        else:
            self.stale += 1
        if self.stale >= optimizer.plateau_patience and self.drops < optimizer.plateau_drops:
            self.drops, self.stale = self.drops + 1, 0
        return optimizer.drop_factor**self.drops


def train_and_evaluate(
    config: ConfigDict, workdir: Path, profile: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Trains to the end of `config`, resuming from `workdir` if it holds a checkpoint.

    Args:
      config: the run.
      workdir: its folder.
      profile: the first and the last step to trace into `workdir/profile`, for TensorBoard,
        Perfetto or XProf.

    Returns:
      The content of `workdir/result.json`.

    Raises:
      UsageError: whatever the person running can mend, before anything compiles.
      Stopped: after a signal asked for it and the state is saved.
    """
    validate(config)
    placement = parallel.place(config)
    tower = towers.build(config.model)
    with ThreadPoolExecutor(1) as background:
        # Drawn while TensorFlow is imported, since each takes seconds.
        drawn = background.submit(towers.init, tower, config.seed, config.data.crop_size)
        sources = open_sources(config)
    train_source = sources["train"]
    steps_per_epoch = pipeline.steps_per_epoch(train_source.num_examples, config.batch_size)
    num_steps = round(config.num_epochs * steps_per_epoch)
    workdirs.prepare(config, workdir)
    inputs = build_inputs(config, train_source, workdir)
    tx = optim.sgd_2012(config, steps_per_epoch, num_steps)
    rate = optim.schedule(config, steps_per_epoch, num_steps)

    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    state, plateau, start = init_state(drawn.result(), tx), Plateau(), 0
    if (restored := checkpoints.restore_latest(state)) is not None:
        start, state, extra = restored
        plateau = Plateau(**extra)
    state = placement.put_towers(state)
    workdirs.write_json(workdir / "env.json", workdirs.environment(placement))
    log = MetricsLog(workdir, start)

    train_step = make_train_step(config, tower, inputs, tx, placement, steps_per_epoch)
    eval_step = evaluation.make_eval_step(tower, inputs, placement, views=1)
    eval_steps = max(round(config.evaluate.every_epochs * steps_per_epoch), 1)
    batches = pipeline.train_batches(
        train_source,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start,
        part=placement.batch_part,
    )

    watch = Watch(config, tower.layers)
    sums: dict[str, float] = {}
    pending, waited, since, steps_since = None, 0.0, time.perf_counter(), 0

    def next_batch() -> dict[str, jax.Array]:
        nonlocal waited
        before = time.perf_counter()
        host_batch = next(batches)
        waited += time.perf_counter() - before
        return placement.put_batch(host_batch)

    batch = next_batch() if start < num_steps else None
    with (
        Progress(num_steps, start) as progress,
        Trace(workdir / "profile", profile) as trace,
        Stop() as stop,
    ):
        images = f"{config.data.source}: {train_source.num_examples} training images"
        progress.say(f"{placement.describe()}; {images}, {num_steps} steps, from step {start}")
        for step in range(start + 1, num_steps + 1):
            warnings: list[str] = []
            trace.before(step)
            state, metrics = train_step(state, batch)
            # The next batch travels to the devices while they work on this one.
            batch = next_batch() if step < num_steps else None
            # A step's metrics are fetched while the next one runs; the last of a logged stretch
            # at once, so that its time is counted in full.
            logged = step % config.log_every_steps == 0 or step in (1, num_steps)
            evaluated = step % eval_steps == 0 or step == num_steps
            for done in (pending, metrics if logged or evaluated else None):
                for name, value in parallel.to_host(done or {}).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            pending = None if logged or evaluated else metrics
            trace.after(step, state)
            steps_since += 1
            progress.update(step)
            if logged or evaluated:
                elapsed = time.perf_counter() - since
                line = {name: value / steps_since for name, value in sums.items()}
                line |= {
                    "step": step,
                    "epoch": step / steps_per_epoch,
                    "split": "train",
                    "images_per_second": steps_since * config.batch_size / elapsed,
                    "data_wait_fraction": waited / elapsed,
                    "learning_rate": float(rate(step - 1))
                    * config.optimizer.drop_factor**plateau.drops,
                }
                log.write(**line)
                seconds_left = (num_steps - step) * elapsed / steps_since
                progress.show(step, num_steps, line, seconds_left)
                warnings = watch.loss(step, line["loss"])
                sums, steps_since = {}, 0
            error = None
            if evaluated:
                for split in config.evaluate.splits:
                    fields = evaluation.evaluate(
                        eval_step, state.params, sources[split], config, placement, views=1
                    )
                    log.write(step=step, epoch=step / steps_per_epoch, split=split, **fields)
                    progress.say(
                        f"step {step}  {split}: loss {fields['loss']:.4f}, "
                        f"top-1 error {fields['top1_error']:.4f}"
                    )
                    error = fields["top1_error"]
                    if config.model.activation == "relu":
                        warnings += watch.units(step, fields["dead_units"])
                if config.optimizer.schedule == "plateau":
                    scale = plateau.observe(error, config.optimizer)
                    full = np.full([tower.towers], scale, np.float32)
                    state = state.replace(rate_scale=placement.put_towers(full))
            for warning in warnings:
                progress.say(f"warning: {warning}")
                log.write(step=step, split="warning", warning=warning)
            stopped = stop.after(step)
            if stopped or evaluated or step % config.checkpoint_every_steps == 0:
                checkpoints.save(step, state, dataclasses.asdict(plateau), error)
            if stopped:
                break
            if logged or evaluated:
                waited, since = 0.0, time.perf_counter()
    checkpoints.close()
    log.close()
    if stop.signal is not None and step < num_steps:
        raise Stopped(step, stop.signal)

    result = {
        "seed": config.seed,
        "steps": num_steps,
        "placement": placement.name,
        "devices": placement.mesh.devices.size,
        "parameters_sha256": workdirs.parameters_sha256(parallel.to_host(state.params)),
    }
    views = config.evaluate.final_views
    eval_step = evaluation.make_eval_step(tower, inputs, placement, views)
    for split in config.evaluate.splits:
        result[split] = evaluation.evaluate(
            eval_step, state.params, sources[split], config, placement, views
        )
    workdirs.write_json(workdir / "result.json", result)
    return result


def open_sources(config: ConfigDict) -> dict[str, Source]:
    """The training and the test split.

    Raises:
      UsageError: if a data set is missing, or its classes are not those of the network.
    """
    data = config.data
    sources = {
        "train": open_source(data.source, data.train_split),
        "test": open_source(data.source, data.test_split),
    }
    for source in sources.values():
        if source.num_classes != config.model.num_classes:
            raise UsageError(
                f"config.model.num_classes = {config.model.num_classes}, but {data.source} has "
                f"{source.num_classes} classes: set --config.model.num_classes="
                f"{source.num_classes}"
            )
    return sources


def build_inputs(config: ConfigDict, train_source: Source, workdir: Path) -> input_rules.Inputs:
    """The input rule; a mean image is computed over the training split once, into the workdir."""
    mean_image = None
    if config.data.mean == "image":
        path = workdir / "statistics.npz"
        if not path.exists() and jax.process_index() == 0:
            _compute_statistics(config, train_source, path)
        while not path.exists():  # the first process computes for all
            time.sleep(1)
        mean_image = statistics.load(path).mean_image
    return input_rules.build(config.data, mean_image)


def compute_statistics(config: ConfigDict, workdir: Path) -> statistics.Statistics:
    """Mean image and RGB components of the training split, into `workdir/statistics.npz`."""
    workdirs.prepare(config, workdir)
    source = open_source(config.data.source, config.data.train_split)
    return _compute_statistics(config, source, workdir / "statistics.npz")


def _compute_statistics(config: ConfigDict, source: Source, path: Path) -> statistics.Statistics:
    def show(done: int, total: int) -> None:
        if done == total or done % 100_000 < 256:
            print(f"statistics: {done} of {total} images", file=sys.stderr, flush=True)

    result = statistics.compute(source, config.data, show)
    result.save(path)
    return result


def evaluate_workdir(config: ConfigDict, workdir: Path, views: int, split: str) -> dict[str, float]:
    """Tests the newest checkpoint of `workdir` on the whole `split` (`train` or `test`).

    Raises:
      UsageError: if there is no checkpoint, or the data set is missing.
    """
    placement = parallel.place(config)
    sources = open_sources(config)
    tower = towers.build(config.model)
    params = towers.init(tower, config.seed, config.data.crop_size)
    like = init_state(params, optim.sgd_2012(config, 1, 1))
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    restored = checkpoints.restore_latest(like)
    if restored is None:
        raise UsageError(f"--workdir={workdir}: holds no checkpoint: run train first")
    step, state, _ = restored
    inputs = build_inputs(config, sources["train"], workdir)
    eval_step = evaluation.make_eval_step(tower, inputs, placement, views)
    params = placement.put_towers(state.params)
    fields = evaluation.evaluate(eval_step, params, sources[split], config, placement, views)
    return {"step": step, "split": split, **fields}
