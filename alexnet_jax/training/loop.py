"""A run from its configuration to its result: the loop, its beginning and its end."""

import contextlib
import dataclasses
import gc
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import leaves, validate
from alexnet_jax.config.rules import check_run
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data import pipeline
from alexnet_jax.data.protocol import Source
from alexnet_jax.data.sources import fit_classes, fitting_batch, open_sources, with_classes
from alexnet_jax.data.sources.arrays import NAME as GIVEN
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.model.kernels import colour_share
from alexnet_jax.model.tower import Tower, build_tower, draw_parameters, initial_statistics
from alexnet_jax.training import evaluate as evaluation
from alexnet_jax.training import log, optimizers
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest, parameters_sha256
from alexnet_jax.training.events import TrainingMean, Warned, to_json
from alexnet_jax.training.optimizers.groups import follows_schedule
from alexnet_jax.training.origin import initial
from alexnet_jax.training.parts import parts as parts_of
from alexnet_jax.training.parts.evaluation import evaluate_split, step_of
from alexnet_jax.training.run import Due, Run, Series
from alexnet_jax.training.schedules import on_host, schedule
from alexnet_jax.training.state import TrainState, init_state
from alexnet_jax.training.step import make_train_step
from alexnet_jax.training.stop import Stop


def loop(run: Run) -> None:
    """Trains until the run is over, or until it is due to leave."""
    if run.evaluation_due():  # The step that the run resumes from was saved before it.
        run.after_step(Due(log=False, save=False, evaluate=True, leave=False))
    leave = run.until is not None and run.step >= run.until
    batch = None if leave else run.next_batch()
    while not (leave or run.ended):
        run.before_step()
        with jax.profiler.StepTraceAnnotation("train", step_num=run.step + 1):
            run.state, run.metrics = run.train_step(run.state, batch)
            run.step += 1
            # The next batch travels to the devices while they work on this one.
            batch = run.next_batch()
        due = run.due()
        run.after_step(due)
        leave = due.leave


@parallel.failing_together()
def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    profile: tuple[int, int] | None = None,
    until: int | None = None,
    *,
    sources: Mapping[str, Source] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    placement: parallel.Placement | None = None,
    series: Series | None = None,
) -> dict[str, Any]:
    """Trains to the end of a run, resuming it if `workdir` holds a checkpoint.

    If the run there has ended, and `config` does not ask for more of it, nothing is written.

    Args:
      config: the configuration.
      workdir: the folder that the run writes.
      profile: the first and the last step to trace into `workdir/profile`, for TensorBoard,
        Perfetto or XProf.
      until: saves and returns once at least this many steps are done.
      sources: the images of each split: `train` and, if there are any, `validation` and `test`.
        Without them, those that `config.data` names are opened.
      optimizer: an Optax transformation with rates of its own, in place of that of
        `config.optimizer`. It is applied to each tower by itself: a norm over all gradients is one
        over those of a tower.
      placement: where the towers run; None for what `config.placement` names.
      series: the runs of which it is one, for the time left on the terminal.

    Returns:
      The content of `workdir/result.json`, or only the step if `until` ended the run early.

    Raises:
      UsageError: before anything compiles, for whatever the user can fix; later, if the disk, the
        data or the numbers fail.
      Stopped: a signal asked the run to stop, and the state is saved.
    """
    workdir = Path(workdir)
    check_run(config)
    wanted = config.batch_size
    config = fit_classes(config) if sources is None else _with_given_sources(config, sources)
    if optimizer is not None:
        config = config.copy_and_resolve_references()
        config.optimizer.rule = "given"
    validate(config)
    done = workdirs.ended(config, workdir)
    if all(parallel.everyone(done is not None)) and done is not None:
        given = GIVEN in (config.data.source, config.optimizer.rule)
        note = "; what is given in Python was not compared" if given else ""
        if jax.process_index() == 0:
            text = f"{workdir} holds this run, which has ended: nothing is to do{note}"
            print(text, file=sys.stderr)
        return done
    placement = placement or parallel.place(config)
    tower = build_tower(config.model)
    with ThreadPoolExecutor(1) as background:
        # Meanwhile TensorFlow is imported; each takes seconds.
        drawn = background.submit(_variables, tower, config)
        sources = open_sources(config) if sources is None else with_classes(sources)
    # A batch that is too large, a folder of another run and an optimizer that does not fit are
    # reported before the folder is touched.
    steps_per_epoch = pipeline.steps_per_epoch(sources["train"].num_examples, config.batch_size)
    if workdirs.is_trained(workdir):
        workdirs.check_resumed(config, workdir, steps_per_epoch)
        sources = with_classes(sources, *workdirs.class_names(config, workdir))
    num_steps = round(config.num_epochs * steps_per_epoch)
    tx = (
        optimizers.build(config, steps_per_epoch, num_steps)
        if optimizer is None
        else optax.with_extra_args_support(optimizer)
    )
    state = init_state(tx=tx, seed=config.seed, **drawn.result())
    del drawn
    if config.optimizer.schedule == "plateau" and not follows_schedule(state.opt_state):
        raise UsageError(
            "config.optimizer.schedule = 'plateau': its drops do not reach an optimizer with rates "
            f"of its own (config.optimizer.rule = {config.optimizer.rule!r}); use "
            "--config.optimizer.schedule=constant"
        )
    result = None
    with workdirs.Writer(workdir) as writer, Checkpoints(workdir, config.keep_checkpoints) as saved:
        parallel.share(workdir)
        run, changes = begin(config, workdir, placement, tower, sources, tx, state, saved)
        del state  # the weights on the host
        run.until = until
        run.parts = parts_of(config, profile, writer, saved, series)
        with contextlib.ExitStack() as stack:
            stack.enter_context(run.stop)
            for part in run.parts:
                stack.callback(part.close)
                part.recall(run.memory.get(part.name, {}))
                part.start(run)
            for change in changes if run.step else ():
                run.emit(Warned(run.step, f"from step {run.step + 1} on {change}"))
            if config.batch_size != wanted and not run.step:
                fitted = f"the training images are fewer: {config.batch_size} is used"
                run.emit(Warned(1, f"config.batch_size = {wanted}: {fitted}"))
            stack.enter_context(_settled())
            with contextlib.suppress(evaluation.Interrupted):
                loop(run)
                if run.ended:
                    result = finish(run)
            saved.wait()
        checkpoint = max(saved.steps(), default=0)
    parallel.everyone("ended")  # None takes leave while another could still fail.
    if result is None and run.stop.signal is not None:
        raise Stopped(run.step, run.stop.signal, checkpoint)
    return result or {"step": run.step}


def _with_given_sources(config: ConfigDict, sources: Mapping[str, Source]) -> ConfigDict:
    """Returns the configuration of a run whose images are given in Python.

    It names only the splits that there are, and its batch is at most the training images.

    Raises:
      UsageError: there are no images to train on, or the classes are not those of the network.
    """
    if "train" not in sources:
        raise UsageError(f"sources holds {', '.join(sources) or 'nothing'}: it needs 'train'")
    for split, source in sources.items():
        if (classes := len(source.class_names)) != config.model.num_classes:
            raise UsageError(
                f"config.model.num_classes = {config.model.num_classes}, but the images of {split} "
                f"have {classes} classes"
            )
    config = config.copy_and_resolve_references()
    config.data.source = GIVEN
    config.data.validation_split = "validation" if "validation" in sources else ""
    config.data.validation_fraction = 0.0
    config.evaluate.splits = tuple(name for name in config.evaluate.splits if name in sources)
    config.batch_size = fitting_batch(config.batch_size, sources["train"].num_examples)
    return config


def _variables(tower: Tower, config: ConfigDict) -> dict[str, dict]:
    """The parameters and running statistics that a run starts with, stacked by tower."""
    crop = config.data.crop_size
    return {
        "params": draw_parameters(tower, config.seed, crop),
        "batch_stats": initial_statistics(tower, crop),
    }


def begin(
    config: ConfigDict,
    workdir: Path,
    placement: parallel.Placement,
    tower: Tower,
    sources: dict[str, Source],
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    checkpoints: Checkpoints,
) -> tuple[Run, list[str]]:
    """Returns the run at its first step or at its newest checkpoint, and what changed since then.

    Args:
      config: the configuration.
      workdir: the folder that the run writes.
      placement: where the towers run.
      tower: the network.
      sources: the images of each split.
      tx: the update rule.
      state: the state of a run that starts from the beginning, on the host.
      checkpoints: those of the folder.

    Raises:
      UsageError: the workdir holds another run.
    """
    source = sources["train"]
    steps_per_epoch = pipeline.steps_per_epoch(source.num_examples, config.batch_size)
    num_steps = round(config.num_epochs * steps_per_epoch)
    position = {"training images": source.num_examples}
    step, memory, trained_with = 0, {}, None
    trained = workdirs.is_trained(workdir)
    if (restored := checkpoints.restore_latest(state)) is not None:
        step, state, extra = restored
        memory, trained_with = extra["parts"], extra.get("config")  # earlier runs have none
        for name, value in position.items():
            if extra["position"][name] != value:
                raise UsageError(
                    f"--workdir={workdir} holds a run with {name} {extra['position'][name]}, "
                    f"not {value}: choose another"
                )
        if step > num_steps:
            raise UsageError(
                f"config.num_epochs = {config.num_epochs} is {num_steps} steps, but "
                f"--workdir={workdir} holds a run of {step}: choose another"
            )
    elif trained:
        raise UsageError(
            f"--workdir={workdir} holds the result of a run without its checkpoints: put them "
            "back, or choose another"
        )
    elif config.init_from:
        start = initial(config, state.variables, source.class_names)
        state = dataclasses.replace(state, **start)
    inputs = input_rules.of_run(config, workdir, source, trained=trained)
    parallel.agree(seen(config, placement, sources, inputs, step, state, memory))
    if jax.process_index() == 0:  # The run goes on: it has not ended any more.
        (workdir / workdirs.RESULT).unlink(missing_ok=True)
    changes = workdirs.write_config(config, workdir, trained_with)
    workdirs.write_json(workdir / "env.json", workdirs.environment(placement))
    workdirs.write_json(workdir / workdirs.CLASSES, list(source.class_names))
    unreadable: dict[str, dict[int, str]] = {split: {} for split in sources}
    own_rates = not follows_schedule(state.opt_state)
    return Run(
        config=config,
        workdir=workdir,
        placement=placement,
        tower=tower,
        inputs=inputs,
        sources=sources,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        rate=None if own_rates else on_host(schedule(config, steps_per_epoch, num_steps)),
        rate_scale=float(state.rate_scale[0]),
        train_step=make_train_step(config, tower, inputs, tx, placement, steps_per_epoch),
        batches=pipeline.train_batches(
            source,
            config.data,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=step,
            part=placement.batch_part,
            unreadable=unreadable["train"],
            gives_way=placement.on_cpu,
        ),
        stop=Stop(),
        state=placement.put_towers(state),
        step=step,
        unreadable=unreadable,
        position=position,
        memory=memory,
    ), changes


def seen(
    config: ConfigDict,
    placement: parallel.Placement,
    sources: Mapping[str, Source],
    inputs: input_rules.Inputs,
    step: int,
    state: TrainState,
    memory: Mapping[str, Any],
) -> dict[str, Any]:
    """What a process has seen of a run, for comparison with the others; empty if there are none.

    Raises:
      UsageError: processes that read the same images could replace different ones.
    """
    processes = jax.process_count()
    if processes == 1:
        return {}
    if config.data.max_unreadable and placement.batch_part[1] < processes:
        raise UsageError(
            f"config.data.max_unreadable = {config.data.max_unreadable}: several processes read "
            "the same images here, and each would replace those that it alone cannot read; use 0, "
            f"or {config.model.towers} devices per process"
        )

    def checksum(content: Any) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    fields = {name: repr(value) for name, value in leaves(config)}
    return {
        "the version of jax": jax.__version__,
        **{f"config.{n}": x for n, x in fields.items() if not n.startswith("distributed.")},
        **{f"the number of images of {n}": s.num_examples for n, s in sources.items()},
        **{f"the checksum of the classes of {n}": checksum(s.class_names)
           for n, s in sources.items()},
        "the checksum of the mean": checksum(np.asarray(inputs.mean).tolist()),
        "the step to start from": step,
        "the checksum of the state": checksum([manifest(items(state)), memory]),
    }  # fmt: skip


def finish(run: Run) -> dict[str, Any]:
    """Evaluates the final weights and writes `result.json`.

    They are evaluated on the test split or, where there is none, on the validation split. Without
    both, the result holds the last mean of training steps.

    Raises:
      Interrupted: the run was asked to stop.
    """
    config, views = run.config, run.config.evaluate.final_views
    final = next((split for split in ("test", "validation") if split in run.sources), None)
    done = run.evaluations.get(final or "")
    # The validation split may have been evaluated after the last step.
    if note := evaluation.views_unlike_training(config, views):
        run.emit(Warned(run.step, note))
    if final is not None and (done is None or (done.step, done.views) != (run.step, views)):
        evaluate_split(run, step_of(run, views), final, views)
    variables = parallel.to_host(run.state.variables)
    first = variables["params"][run.tower.layers[0].name]["kernel"]
    result = {
        "seed": config.seed,
        "steps": run.step,
        "placement": run.placement.name,
        "devices": run.placement.mesh.devices.size,
        "parameters_sha256": parameters_sha256(manifest(variables)),
    }
    # Of a convolution. The paper says that in every run one tower specializes in colour (6.1).
    if first.ndim == 5:
        result["colour_share"] = [float(share) for share in colour_share(first).mean(1)]
    for split, event in run.evaluations.items():
        where = ("event", "step", "epoch", "split")
        result[split] = {k: v for k, v in to_json(event).items() if k not in where}
    if final is None:
        result["training"] = _training_mean(run)
    workdirs.write_json(run.workdir / workdirs.RESULT, result)
    return result


def _training_mean(run: Run) -> dict[str, float]:
    """Returns loss and errors of the latest training steps that were logged."""
    logged = log.read(run.workdir, missing=True)
    last = [event for event in logged if isinstance(event, TrainingMean)][-1:]
    return {name: getattr(e, name) for e in last for name in ("loss", "top1_error", "top5_error")}


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """Excludes the objects that exist now from garbage collection.

    Each save collects garbage (see `Checkpoints.save`) and would otherwise visit half a million
    objects of libraries.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
