"""A run from its configuration to its result: the loop, its beginning and its end."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import validate
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source, fit_classes, open_sources
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.model.tower import Tower, build_tower, draw_parameters
from alexnet_jax.training import evaluate as evaluation
from alexnet_jax.training import optimizer
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.checkpoint import Checkpoints, manifest, parameters_sha256
from alexnet_jax.training.events import Warned, to_json
from alexnet_jax.training.network import initial
from alexnet_jax.training.parts import parts as parts_of
from alexnet_jax.training.parts.evaluation import evaluate_split
from alexnet_jax.training.run import Due, Run
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import make_train_step
from alexnet_jax.training.stop import Stop

RESULT = "result.json"


def loop(run: Run) -> None:
    """Trains until the run is over, or until it is due to leave."""
    if run.evaluation_due():  # The step that the run resumes from was saved before it.
        run.after_step(Due(log=False, save=False, evaluate=True, leave=False))
    leave = run.until is not None and run.step >= run.until
    batch = None if leave else run.next_batch()
    while not (leave or run.ended):
        run.before_step()
        run.state, run.metrics = run.train_step(run.state, batch)
        run.step += 1
        # The next batch travels to the devices while they work on this one.
        batch = run.next_batch()
        due = run.due()
        run.after_step(due)
        leave = due.leave


def train_and_evaluate(
    config: ConfigDict,
    workdir: Path,
    profile: tuple[int, int] | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Trains to the end of a run, resuming it if `workdir` holds a checkpoint.

    Args:
      config: the configuration.
      workdir: the folder that the run writes.
      profile: the first and the last step to trace into `workdir/profile`, for TensorBoard,
        Perfetto or XProf.
      until: saves and returns once at least this many steps are done.

    Returns:
      The content of `workdir/result.json`, or only the step if `until` ended the run early.

    Raises:
      UsageError: before anything compiles, for whatever the user can fix; later, if the disk, the
        data or the numbers fail.
      Stopped: a signal asked the run to stop, and the state is saved.
    """
    config = fit_classes(config)
    validate(config)
    placement = parallel.place(config)
    tower = build_tower(config.model)
    with ThreadPoolExecutor(1) as background:
        # Meanwhile TensorFlow is imported; each takes seconds.
        drawn = background.submit(draw_parameters, tower, config.seed, config.data.crop_size)
        sources = open_sources(config)
    # A batch that is too large is reported before the folder is touched.
    pipeline.steps_per_epoch(sources["train"].num_examples, config.batch_size)
    result = None
    with workdirs.Writer(workdir) as writer, Checkpoints(workdir, config.keep_checkpoints) as saved:
        run, changes = begin(config, workdir, placement, tower, sources, drawn.result(), saved)
        del drawn  # the weights on the host
        run.until = until
        run.parts = parts_of(config, profile, writer, saved)
        with contextlib.ExitStack() as stack:
            stack.enter_context(run.stop)
            for part in run.parts:
                stack.callback(part.close)
                part.recall(run.memory.get(part.name, {}))
                part.start(run)
            for change in changes if run.step else ():
                run.emit(Warned(run.step, f"from step {run.step + 1} on {change}"))
            stack.enter_context(_settled())
            with contextlib.suppress(evaluation.Interrupted):
                loop(run)
                if run.ended:
                    result = finish(run)
            saved.wait()
        checkpoint = max(saved.steps(), default=0)
    if result is None and run.stop.signal is not None:
        raise Stopped(run.step, run.stop.signal, checkpoint)
    return result or {"step": run.step}


def begin(
    config: ConfigDict,
    workdir: Path,
    placement: parallel.Placement,
    tower: Tower,
    sources: dict[str, Source],
    drawn: dict[str, Any],
    checkpoints: Checkpoints,
) -> tuple[Run, list[str]]:
    """Returns the run at its first step or at its newest checkpoint, and what changed since then.

    Raises:
      UsageError: the workdir holds another run.
    """
    source = sources["train"]
    steps_per_epoch = pipeline.steps_per_epoch(source.num_examples, config.batch_size)
    num_steps = round(config.num_epochs * steps_per_epoch)
    tx = optimizer.sgd_2012(config, steps_per_epoch, num_steps)
    position = {"training images": source.num_examples}
    state, step, memory = init_state(drawn, tx, config.seed), 0, {}
    if checkpoints.steps():
        workdirs.check_resumed(config, workdir, source.class_names)
    if (restored := checkpoints.restore_latest(state)) is not None:
        step, state, extra = restored
        if extra.keys() != {"position", "parts"}:
            raise UsageError(
                f"--workdir={workdir} holds a run of version 0.1, which cannot be resumed: choose "
                "another"
            )
        memory = extra["parts"]
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
    elif config.init_from:
        state = dataclasses.replace(state, params=initial(config, drawn, source.class_names))
    inputs = input_rules.of_run(config, workdir)
    changes = workdirs.write_config(config, workdir)
    workdirs.write_json(workdir / "env.json", workdirs.environment(placement))
    workdirs.write_json(workdir / workdirs.CLASSES, list(source.class_names))
    unreadable: dict[str, dict[int, str]] = {split: {} for split in sources}
    return Run(
        config=config,
        workdir=workdir,
        placement=placement,
        tower=tower,
        inputs=inputs,
        sources=sources,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        rate=optimizer.schedule(config, steps_per_epoch, num_steps),
        train_step=make_train_step(config, tower, inputs, tx, placement, steps_per_epoch),
        batches=pipeline.train_batches(
            source,
            config.data,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=step,
            part=placement.batch_part,
            unreadable=unreadable["train"],
        ),
        stop=Stop(),
        state=placement.put_towers(state),
        step=step,
        unreadable=unreadable,
        position=position,
        memory=memory,
    ), changes


def finish(run: Run) -> dict[str, Any]:
    """Evaluates the final weights on the test split and writes `result.json`.

    Raises:
      Interrupted: the run was asked to stop.
    """
    config, views = run.config, run.config.evaluate.final_views
    step = evaluation.make_eval_step(run.tower, run.inputs, run.placement, views)
    evaluate_split(run, step, "test", views)
    result = {
        "seed": config.seed,
        "steps": run.step,
        "placement": run.placement.name,
        "devices": run.placement.mesh.devices.size,
        "parameters_sha256": parameters_sha256(manifest(parallel.to_host(run.state))),
    }
    for split, event in run.evaluations.items():
        result[split] = {k: v for k, v in to_json(event).items() if k not in _WHERE}
    workdirs.write_json(run.workdir / RESULT, result)
    return result


_WHERE = ("event", "step", "epoch", "split")


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
