"""The train step, visible whole, and the run around it."""

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import evaluate as evaluation
from alexnet_jax import inputs as input_rules
from alexnet_jax import optim, parallel
from alexnet_jax import workdir as workdirs
from alexnet_jax.checkpoint import Checkpoints, manifest, parameters_sha256
from alexnet_jax.config import validate
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source, fit_classes, open_sources
from alexnet_jax.diagnose import NotFinite, Trace, Watch, Watchdog
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.metrics import MetricsLog, Progress
from alexnet_jax.models import layers
from alexnet_jax.models import tower as towers
from alexnet_jax.state import TrainState, init_state
from alexnet_jax.stopping import Stop
from alexnet_jax.summaries import Pictures, open_sinks
from alexnet_jax.trained import CLASSES, Network, initial

CHECK = "finite_check"
"""The scope of the one exchange that is no layer's: whether every tower's gradients are finite."""


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
    means over the global batch, computed before the update, and `not_finite`: int32 `[n]`, of how
    many towers each gradient (in the order of `jax.tree.leaves`), and last the loss, holds a NaN or
    an infinity. Where any does, nothing but the step's number changes.

    With `config.accumulate_steps` a device works through its share in so many parts, in the memory
    of one; the update is the same.
    """
    noisy_steps = config.data.colour.until_epoch * steps_per_epoch or math.inf

    def gradients_and_sums(state: TrainState, batch: dict) -> tuple[dict, dict]:
        images = inputs.train(batch, noise=state.step < noisy_steps)
        dropout_key = jax.random.fold_in(jax.random.key(state.seed), 1)
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

    def not_finite(gradients: dict, loss: jax.Array) -> jax.Array:
        # A sum is finite where every term is, and XLA adds faster than it looks at each.
        sums = jnp.stack([jnp.sum(g) for g in jax.tree.leaves(gradients)] + [loss])
        with jax.named_scope(CHECK):
            return layers.sum_over_towers((~jnp.isfinite(sums)).astype(jnp.int32))

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        gradients, sums = placement.sum_over_data(accumulated(state, batch))
        wrong = not_finite(gradients, sums["loss"])

        def apply(params: dict, opt_state: Any) -> tuple[dict, Any]:
            updates, opt_state = tx.update(
                gradients, opt_state, params, rate_scale=state.rate_scale
            )
            # The new velocity is stored before the weights change: otherwise XLA computes it again
            # for them, from copies of all that it has overwritten by then.
            updates, opt_state = jax.lax.optimization_barrier((updates, opt_state))
            return optax.apply_updates(params, updates), opt_state

        def skip(params: dict, opt_state: Any) -> tuple[dict, Any]:
            # The counters of the schedule go on, the velocity does not.
            def count(x: jax.Array) -> jax.Array:
                return x + 1 if jnp.issubdtype(x.dtype, jnp.integer) else x

            return params, jax.tree.map(count, opt_state)

        params, opt_state = jax.lax.cond(
            jnp.all(wrong == 0), apply, skip, state.params, state.opt_state
        )
        new_state = TrainState(state.step + 1, params, opt_state, state.rate_scale, state.seed)
        means = jax.tree.map(lambda x: x / config.batch_size, sums)
        return new_state, means | {"not_finite": wrong}

    return placement.spread(train_step, ("tower", "batch"), ("tower", "same"), donate=(0,))


def train_and_evaluate(
    config: ConfigDict,
    workdir: Path,
    profile: tuple[int, int] | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Trains to the end of `config`, resuming from `workdir` if it holds a checkpoint.

    Args:
      config: the run.
      workdir: its folder.
      profile: the first and the last step to trace into `workdir/profile`, for TensorBoard,
        Perfetto or XProf.
      until: saves after this step and ends there.

    Returns:
      The content of `workdir/result.json`; of a run that ends before its end, the step.

    Raises:
      UsageError: whatever the person running can mend, before anything compiles; and where the
        disk, the data or the numbers fail later.
      Stopped: after a signal asked for it and the state is saved.
    """
    config = fit_classes(config)
    validate(config)
    placement = parallel.place(config)
    tower = towers.build(config.model)
    with ThreadPoolExecutor(1) as background:
        # Drawn while TensorFlow is imported, since each takes seconds.
        drawn = background.submit(towers.init, tower, config.seed, config.data.crop_size)
        sources = open_sources(config)
    # Checked before the folder is touched.
    pipeline.steps_per_epoch(sources["train"].num_examples, config.batch_size)
    with workdirs.Writer(workdir) as writer:
        return _run(
            config, workdir, writer, placement, tower, sources, drawn.result(), profile, until
        )


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """Leaves what is in memory by now out of Python's search for cycles, for so long.

    Each save makes one (see `Checkpoints.save`), which would look at half a million objects of
    libraries.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclasses.dataclass
class Stretch:
    """What the next line of the log is the mean of: the finite steps since the last line."""

    steps: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Takes one step's."""
        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)


def _run(
    config: ConfigDict,
    workdir: Path,
    writer: workdirs.Writer,
    placement: parallel.Placement,
    tower: towers.Tower,
    sources: dict[str, Source],
    params: dict,
    profile: tuple[int, int] | None,
    until: int | None,
) -> dict[str, Any]:
    """`train_and_evaluate`, once it is known to be a run and the folder is its own."""
    train_source = sources["train"]
    steps_per_epoch = pipeline.steps_per_epoch(train_source.num_examples, config.batch_size)
    num_steps = round(config.num_epochs * steps_per_epoch)
    inputs = input_rules.of_run(config, workdir)
    tx = optim.sgd_2012(config, steps_per_epoch, num_steps)
    rate = optim.schedule(config, steps_per_epoch, num_steps)
    position = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "training images": train_source.num_examples,
    }
    class_names = train_source.class_names
    state, plateau, stretch, start = (
        init_state(params, tx, config.seed),
        optim.Plateau(),
        Stretch(),
        0,
    )
    ended = num_steps == 0

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints))
        if (restored := checkpoints.restore_latest(state)) is not None:
            start, state, extra = restored
            if extra.keys() != {"position", "plateau", "stretch", "ended"}:
                raise UsageError(f"--workdir={workdir} is of another version: choose another")
            for name, value in position.items():
                if extra["position"][name] != value:
                    raise UsageError(
                        f"--workdir={workdir} holds a run with {name} {extra['position'][name]}, "
                        f"not {value}: choose another"
                    )
            if start > num_steps:
                raise UsageError(
                    f"config.num_epochs = {config.num_epochs} is {num_steps} steps, but "
                    f"--workdir={workdir} holds a run of {start}: choose another"
                )
            plateau, stretch = optim.Plateau(**extra["plateau"]), Stretch(**extra["stretch"])
            # A longer run goes on from the end of a shorter one.
            ended = start == num_steps or (extra["ended"] and config.stop_at_error > 0)
        elif config.init_from:
            state = state.replace(params=initial(config, params, class_names))
        state = placement.put_towers(state)
        changes = workdirs.write_config(config, workdir)
        workdirs.write_json(workdir / "env.json", workdirs.environment(placement))
        workdirs.write_json(workdir / CLASSES, list(class_names))
        sinks = open_sinks(config, workdir)
        log = stack.enter_context(MetricsLog(workdir, start, sinks))
        network = Network(config, tower, params, inputs, class_names)
        pictures = Pictures(network, sources["test"], placement, sinks)

        train_step = make_train_step(config, tower, inputs, tx, placement, steps_per_epoch)
        eval_step = evaluation.make_eval_step(tower, inputs, placement, views=1)
        eval_steps = max(round(config.evaluate.every_epochs * steps_per_epoch), 1)
        unreadable: dict[str, dict[int, str]] = {split: {} for split in sources}
        batches = pipeline.train_batches(
            train_source,
            config.data,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=start,
            part=placement.batch_part,
            unreadable=unreadable["train"],
        )
        progress = stack.enter_context(Progress(num_steps, start))
        trace = stack.enter_context(Trace(workdir / "profile", profile))
        stop = stack.enter_context(Stop())
        watchdog = stack.enter_context(
            Watchdog(workdir / "stacks.txt", config.warn_slow_step_after_seconds)
        )
        stack.enter_context(_settled())
        watch = Watch(config, tower.layers)
        guard = NotFinite(config, workdir, train_source, state.params)

        waited, since, timed_steps = 0.0, time.perf_counter(), 0

        def next_batch() -> dict[str, jax.Array]:
            nonlocal waited
            before = time.perf_counter()
            host_batch = next(batches)
            waited += time.perf_counter() - before
            return placement.put_batch(host_batch)

        def warn(step: int, text: str) -> None:
            progress.say(f"warning: {text}")
            log.write(step=step, split="warning", warning=text)

        data = f"{config.data.source}: {train_source.num_examples} training images"
        progress.say(f"{placement.describe()}; {data}, {num_steps} steps, from step {start}")
        if start:
            for change in changes:
                warn(start, f"from step {start + 1} on {change}")
        watchdog.watch("the first batch")
        batch = None if ended else next_batch()
        pending: list[tuple[int, dict]] = []
        tested: dict[str, dict] = {}
        for step in () if ended else range(start + 1, num_steps + 1):
            watchdog.watch(f"step {step}")
            trace.before(step)
            state, metrics = train_step(state, batch)
            pending.append((step, metrics))
            # The next batch travels to the devices while they work on this one.
            batch = next_batch() if step < num_steps else None
            last = stop.after(step) or step == until
            logged = step % config.log_every_steps == 0 or step in (1, num_steps)
            evaluated = step % eval_steps == 0 or step == num_steps
            saved = last or evaluated or step % config.checkpoint_every_steps == 0
            # A step's metrics are fetched while the next one runs, but at once where they are
            # written: so that a stretch's time is counted in full, and its sums are saved whole.
            while len(pending) > (0 if logged or saved else 1):
                done, values = pending.pop(0)
                values = parallel.to_host(values)
                wrong = values.pop("not_finite")
                if wrong.any():
                    log.write(**guard.not_applied(done, values["loss"], wrong))
                    progress.say(f"warning: {guard.last}")
                    guard.give_up(after=config.max_not_finite_steps)
                else:
                    guard.applied()
                    stretch.add(values)
            trace.after(step, state)
            timed_steps += 1
            progress.update(step)
            if logged or saved:
                writer.check()
            if (logged or evaluated) and stretch.steps:
                elapsed = time.perf_counter() - since
                line = {name: value / stretch.steps for name, value in stretch.sums.items()}
                line |= {
                    "step": step,
                    "epoch": step / steps_per_epoch,
                    "split": "train",
                    "images_per_second": timed_steps * config.batch_size / elapsed,
                    "data_wait_fraction": waited / elapsed,
                    "learning_rate": float(rate(step - 1))
                    * config.optimizer.drop_factor**plateau.drops,
                }
                if config.data.max_unreadable:
                    line["unreadable"] = len(unreadable["train"])
                log.write(**line)
                seconds_left = (num_steps - step) * elapsed / timed_steps
                progress.show(step, num_steps, line, seconds_left)
                for text in watch.loss(step, line["loss"]):
                    warn(step, text)
                stretch = Stretch()
            error = None
            if evaluated:
                watchdog.rest()
                for split in config.evaluate.splits:
                    tested[split] = fields = evaluation.evaluate(
                        eval_step, state.params, sources[split], config, placement, views=1,
                        unreadable=unreadable[split],
                    )  # fmt: skip
                    log.write(step=step, epoch=step / steps_per_epoch, split=split, **fields)
                    progress.say(
                        f"step {step}  {split}: loss {fields['loss']:.4f}, "
                        f"top-1 error {fields['top1_error']:.4f}"
                    )
                    error = fields["top1_error"]
                    if config.model.activation == "relu":
                        for text in watch.units(step, fields["dead_units"]):
                            warn(step, text)
                pictures.draw(step, state.params)
                if config.optimizer.schedule == "plateau":
                    scale = plateau.observe(error, config.optimizer)
                    full = np.full([tower.towers], scale, np.float32)
                    state = state.replace(rate_scale=placement.put_towers(full))
            for split, images in unreadable.items():
                for text in watch.images(split, images):
                    warn(step, text)
            # What is saved amid bad steps would be what a run that gave up goes on from.
            ended = step == num_steps or (
                evaluated and config.stop_at_error > 0 and error <= config.stop_at_error
            )
            if last or ended or (saved and not guard.streak):
                arrays = manifest(parallel.to_host(state))
                # First: a checkpoint never lacks its line.
                log.write(
                    step=step, split="checkpoint", parameters_sha256=parameters_sha256(arrays)
                )
                extra = {
                    "position": position,
                    "plateau": dataclasses.asdict(plateau),
                    "stretch": dataclasses.asdict(stretch),
                    "ended": ended,
                }
                checkpoints.save(step, state, arrays, extra, error)
            if last or ended:
                break
            if logged or evaluated:
                waited, since, timed_steps = 0.0, time.perf_counter(), 0
        watchdog.rest()
        checkpoints.wait()

    if not ended:
        if stop.signal is not None:
            raise Stopped(step, stop.signal)
        return {"step": step}
    result = {
        "seed": config.seed,
        "steps": int(parallel.to_host(state.step).flat[0]),
        "placement": placement.name,
        "devices": placement.mesh.devices.size,
        "parameters_sha256": parameters_sha256(manifest(parallel.to_host(state))),
    }
    views = config.evaluate.final_views
    if views > 1 or not tested:
        eval_step = evaluation.make_eval_step(tower, inputs, placement, views)
        for split in config.evaluate.splits:
            tested[split] = evaluation.evaluate(
                eval_step, state.params, sources[split], config, placement, views,
                unreadable=unreadable[split],
            )  # fmt: skip
    workdirs.write_json(workdir / "result.json", result | tested)
    return result | tested
