"""The command line: `python -m alexnet_jax VERB --flags`. Thin: flags, then one call.

Exit codes: 0 done, 2 an error that the user can fix (one line on stderr), 3 another process of the
same run was lost (start all of them again: they resume), 4 `verify` found a difference, 5 some runs
of a study failed, 130 and 143 stopped by Ctrl-C or SIGTERM, 141 the reader of the output has closed
it, 1 anything else. JAX and TensorFlow are imported by the verbs that need them, so that help is
instant.
"""

import difflib
import io
import json
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from alexnet_jax.cli import arguments
from alexnet_jax.cli.arguments import EXAMPLE
from alexnet_jax.config import find
from alexnet_jax.errors import LOST_ANOTHER, Stopped, UsageError
from alexnet_jax.paths import write_output
from alexnet_jax.weights import named

_RESUME = "start all of them again with the same command: they resume from the last checkpoint"
NOT_THE_SAME = 4
FAILED = 5
NOBODY_READS = 128 + 13  # a shell shows 128 + SIGPIPE


def train(flag: flags.FlagValues) -> None:
    """Train a network; the same command resumes where it stopped."""
    config, workdir = flag.config, Path(flag.workdir)
    profile = arguments.steps(flag.profile)
    _start(config)
    from alexnet_jax.analysis.headline import sentence
    from alexnet_jax.training import log
    from alexnet_jax.training.loop import train_and_evaluate

    result = train_and_evaluate(config, workdir, profile)
    print(f"{sentence(result, log.read(workdir, missing=True))}.")
    print(f"All numbers: {workdir / 'result.json'}. A page: report --workdir={workdir}")


def evaluate(flag: flags.FlagValues) -> None:
    """Evaluate a trained network on a whole split: the centre crop, or nine or ten views."""
    from alexnet_jax.training.api import evaluate_workdir
    from alexnet_jax.training.origin import config_of

    origin = _origin(flag)
    config = config_of(origin)
    if flag.source:
        config.data.source = flag.source
    _start(config)
    _note_views(config, int(flag.views))
    fields = evaluate_workdir(config, origin, int(flag.views), flag.split, flag.step)
    print(json.dumps(fields, indent=2))


def verify(flag: flags.FlagValues) -> int:
    """Run the first steps of a workdir again and compare losses and checksums with its log."""
    from alexnet_jax.analysis.verify import verify as compare
    from alexnet_jax.training.origin import config_of

    workdir = Path(flag.workdir)
    config = config_of(workdir)
    _start(config)
    verdict = compare(config, workdir, flag.until)
    print(verdict.text())
    return 0 if verdict.same else NOT_THE_SAME


def inspect(flag: flags.FlagValues) -> None:
    """Print the layers (shapes, parameters, multiply-adds, exchange) and the conventions."""
    if flag.compile:
        from alexnet_jax.analysis import compile as ahead
        from alexnet_jax.analysis.targets import target

        found = ahead.compile_for(flag.config, target(flag.compile))
        print(json.dumps(found, indent=2) if flag.json else ahead.text_of(found))
        return
    if flag.exchange:
        _start(flag.config)
        from alexnet_jax.analysis.exchange import report

        print(report(flag.config))
        return
    from alexnet_jax.analysis.inspect import convention_table, layer_table
    from alexnet_jax.config import validate
    from alexnet_jax.data.sources import fit_classes

    config = fit_classes(flag.config)
    validate(config)
    if flag.diagram:
        from alexnet_jax.analysis import diagram

        write_output(Path(flag.diagram), diagram.draw(config))
        print(f"wrote {flag.diagram}")
        return
    print(layer_table(config))
    print()
    print(convention_table(config))


def fields(flag: flags.FlagValues) -> None:
    """Print every field of a configuration: default, range and meaning."""
    from alexnet_jax.analysis.inspect import field_table

    print(field_table(flag.group, flag.markdown))


def statistics(flag: flags.FlagValues) -> None:
    """Compute a data set's mean image and RGB principal components, for data.mean and colour."""
    config, workdir = flag.config, Path(flag.workdir)
    _start(config)
    from alexnet_jax.data.inputs import STATISTICS, keep_statistics
    from alexnet_jax.training.workdir import Writer, is_trained

    with Writer(workdir):
        result = keep_statistics(config, workdir, is_trained(workdir))
    print(f"{workdir / STATISTICS}, from {result.num_examples} images. In a config:")
    print(f"  data.channel_mean = {tuple(round(float(x), 4) for x in result.channel_mean)}")
    print(f"  data.colour.stdevs = {tuple(round(float(x), 6) for x in result.stdevs)}")
    rows = tuple(tuple(round(float(x), 8) for x in row) for row in result.eigenvectors)
    print(f"  data.colour.eigenvectors = {rows}")


def prepare(flag: flags.FlagValues) -> None:
    """Decode and resize a data set once, for runs with --config.data.source=prepared:OUT."""
    config, out = flag.config, Path(flag.out)
    _start(config)
    from alexnet_jax.data.prepare import prepare as prepare_split
    from alexnet_jax.data.sources import announce, open_source

    data = config.data
    # Without a validation split, runs hold out a share of the prepared training images.
    splits = (data.train_split, data.validation_split, data.test_split)
    for split in dict.fromkeys(filter(None, splits)):

        def show(done: int, total: int, split: str = split) -> None:
            if done == total or done % 100_000 < 64:
                print(f"{split}: {done} of {total} images", file=sys.stderr, flush=True)

        source = open_source(data.source, split, data)
        announce([source])
        prepare_split(source, data, out / split, show)
    print(f"wrote {out}; train with --config.data.source=prepared:{out}")


def bench(flag: flags.FlagValues) -> None:
    """Measure the training step, the forward pass and the input of a config on this machine."""
    _start(flag.config)
    import jax

    from alexnet_jax.analysis import bench as benchmark

    result = benchmark.run(flag.config, flag.rounds, flag.steps)
    if jax.process_index() == 0:  # The speed of all processes is said once.
        print(benchmark.table(result))


def study(flag: flags.FlagValues) -> int:
    """Run all variants with all seeds, except finished runs; write the table and the figure."""
    from alexnet_jax.analysis import comparison
    from alexnet_jax.analysis import study as studies

    folder = Path(flag.workdir)
    config = flag.config or studies.read(folder)
    studies.check(config)
    if flag.compare:
        one, other = arguments.pair(flag.compare)
        studies.check_finished(config, folder)
        print(comparison.between(config, folder, one, other))
        return 0
    part = arguments.part(flag.part)
    failed = []
    if not flag.table_only:
        _start(config.base)
        failed = studies.run(config, folder, part)
    print(studies.write(config, folder))
    print(f"wrote {', '.join(str(folder / name) for name in studies.OUTPUTS)}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return FAILED if failed else 0


def report(flag: flags.FlagValues) -> None:
    """Write one page about a run, a study, or several runs (--workdir=RUN1,RUN2,...)."""
    from alexnet_jax.analysis import report as pages
    from alexnet_jax.training.origin import config_of

    folders = arguments.folders(flag.workdir)
    if len(folders) > 1:
        print(f"wrote {pages.write_runs(folders, Path(flag.out or 'runs.html'))}")
        return
    (workdir,) = folders
    if flag.out:
        raise UsageError(f"--out={flag.out}: the page of one folder is {workdir / pages.PAGE}")
    if (workdir / "config.json").is_file():
        _start(config_of(workdir))
    print(f"wrote {pages.write(workdir)}")


def predict(flag: flags.FlagValues) -> int:
    """Print the most probable classes of images, and an error for each that cannot be read."""
    from alexnet_jax.data.image_files import image_paths
    from alexnet_jax.training.predictions import Writer

    failed: list[str] = []
    unreadable: dict[int, str] = {}
    if paths := image_paths(flag.images, failed.append):
        network = _network(flag)
        if flag.max_pixels:
            network.config.data.max_pixels = flag.max_pixels
        _note_views(network.config, int(flag.views))
        writer = Writer(flag.format, paths, network.class_names)
        if header := writer.header():
            print(header)
        for path, probabilities in network.predictions(paths, int(flag.views), unreadable):
            print(writer.row(path, probabilities), flush=True)
        if summary := writer.summary():
            print(summary, file=sys.stderr if flag.format in ("json", "csv") else sys.stdout)
    return _report((*failed, *unreadable.values()))


def explain(flag: flags.FlagValues) -> int:
    """Write one page that walks images through a network, layer by layer."""
    from alexnet_jax.analysis import explain as pages
    from alexnet_jax.data.image_files import image_paths

    failed: list[str] = []
    paths = image_paths(flag.images, failed.append)
    if len(paths) > pages.MOST:
        raise UsageError(f"{len(paths)} images: a page holds {pages.MOST} at most")
    out = Path(flag.out or Path(flag.workdir or "") / "explain.html")
    network, explanations = _network(flag), []
    if flag.max_pixels:
        network.config.data.max_pixels = flag.max_pixels
    for path in paths:
        try:
            explanations.append(network.explain(path, flag.classes, flag.unit))
        except UsageError as error:
            failed.append(str(error))
    if explanations:
        among = pages.images_of(network.config, Path(flag.workdir) if flag.workdir else None)
        text = pages.page(network, explanations, flag.workdir or flag.weights, among)
        write_output(out, text)
        print(f"wrote {out}")
    return _report(failed)


def _report(failed: Iterable[str]) -> int:
    """Prints each error once and returns the exit code."""
    for line in (failed := dict.fromkeys(failed)):
        hint = "; --max_pixels=N allows more" if "config.data.max_pixels" in line else ""
        print(f"error: {line}{hint}", file=sys.stderr)
    return 2 if failed else 0


def _note_views(config: ConfigDict, views: int) -> None:
    from alexnet_jax.training.evaluate import views_unlike_training

    if note := views_unlike_training(config, views):
        print(f"note: {note}", file=sys.stderr)


def export(flag: flags.FlagValues) -> None:
    """Write a network: OUT.safetensors, OUT.onnx, OUT.py (PyTorch) or OUT.md (its model card)."""
    from alexnet_jax.weights import files

    out = Path(flag.out)
    if out.suffix not in (kinds := (*files.WRITTEN, ".md")):
        raise UsageError(f"--out={out}: use one of {', '.join(kinds)}")
    if flag.pixels and out.suffix != ".onnx":
        raise UsageError(f"--pixels: of an .onnx file, and not of --out={out}")
    if flag.dtype != "float32" and out.suffix != ".safetensors":
        raise UsageError(f"--dtype={flag.dtype}: of a .safetensors file, and not of --out={out}")
    if out.suffix == ".md":
        if flag.step:
            raise UsageError(f"--step={flag.step}: a model card is about the final weights")
        from alexnet_jax.analysis import card

        write_output(out, card.text(_origin(flag)))
    else:
        _network(flag).save(out, flag.pixels, flag.dtype)
    beside = f" and {out.with_suffix('.safetensors')}" if out.suffix == ".py" else ""
    print(f"wrote {out}{beside}")


def doctor(flag: flags.FlagValues) -> int:
    """Print versions, devices, placement and data sets, and how to install what is missing."""
    del flag
    from alexnet_jax.analysis import doctor as examination

    found = examination.examine()
    print(examination.table(found))
    return 2 if any(finding.advice and finding.needed for finding in found) else 0


def _origin(flag: flags.FlagValues) -> Path:
    """What --workdir or --weights names, whichever is given."""
    if bool(flag.workdir) == bool(flag.weights):
        raise UsageError("give one of --workdir, a run, and --weights, a file or a name")
    return Path(flag.workdir or flag.weights)


def _network(flag: flags.FlagValues):
    """The network of --workdir or --weights, whichever is given."""
    origin = _origin(flag)
    from alexnet_jax.training import origin as trained

    config = trained.config_of(origin)
    _start(config)
    return trained.load(origin, step=flag.step, placement=config.placement)


VERBS: dict[str, tuple[Callable[[flags.FlagValues], int | None], tuple[str, ...], str]] = {
    "train": (
        train,
        ("config", "workdir", "profile"),
        f"--config={EXAMPLE} --workdir=runs/quickstart",
    ),
    "evaluate": (
        evaluate,
        ("workdir", "step", "weights", "views", "source", "split"),
        "--workdir=runs/quickstart --views=10",
    ),
    "predict": (
        predict,
        ("workdir", "step", "weights", "views", "max_pixels", "format", "images"),
        "--workdir=runs/quickstart photo.jpg 'more/*.png'",
    ),
    "explain": (
        explain,
        ("workdir", "step", "weights", "classes", "unit", "max_pixels", "out", "images"),
        "--workdir=runs/quickstart photo.jpg",
    ),
    "import": (
        export,
        ("workdir", "step", "weights", "pixels", "dtype", "out"),
        "--weights=bvlcalexnet.onnx --out=caffe.safetensors",
    ),
    "export": (
        export,
        ("workdir", "step", "weights", "pixels", "dtype", "out"),
        "--workdir=runs/quickstart --out=network.onnx --pixels",
    ),
    "verify": (verify, ("workdir", "until"), "--workdir=runs/quickstart --until=100"),
    "study": (
        study,
        ("config", "workdir", "part", "table_only", "compare"),
        "--config=studies/components --workdir=runs/components",
    ),
    "report": (report, ("workdir", "out"), "--workdir=runs/quickstart"),
    "statistics": (statistics, ("config", "workdir"), f"--config={EXAMPLE} --workdir=runs/digits"),
    "prepare": (prepare, ("config", "out"), "--config=imagenet --out=data/imagenet"),
    "bench": (bench, ("config", "rounds", "steps"), "--config=imagenet --rounds=3"),
    "inspect": (
        inspect,
        ("config", "exchange", "compile", "json", "diagram"),
        "--config=imagenet --compile=h100:2",
    ),
    "fields": (fields, ("group", "markdown"), "--group=optimizer"),
    "doctor": (doctor, (), ""),
}


_OPTIONAL = {
    "study": ("config",),  # One that has a table is described in its folder.
    "explain": ("out",),
    "report": ("out",),
}


def _start(config: ConfigDict) -> None:
    from alexnet_jax.config import validate
    from alexnet_jax.parallel import prepare_host
    from alexnet_jax.parallel.placement import find_devices

    validate(config)
    prepare_host(config)
    find_devices()


def _run(typed: list[str]) -> int:
    if not typed or typed[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if typed else 2
    verb, *rest = typed
    if verb not in VERBS:
        if later := next((word for word in rest if word in VERBS), None):
            raise UsageError(f"no verb {verb!r}: the verb comes first, {_command()} {later} ...")
        close = difflib.get_close_matches(verb.lower(), VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(VERBS)}"
        raise UsageError(f"no verb {verb!r}: {hint}")
    if {"-h", "--help"} & set(rest):
        print(usage(verb))
        return 0
    flag = arguments.parse(verb, VERBS[verb][1], rest, _OPTIONAL.get(verb, ()))
    return VERBS[verb][0](flag) or 0


def _command() -> str:
    """The command as it was typed."""
    name = "alexnet-jax"
    return name if Path(sys.argv[0]).stem == name else "python -m alexnet_jax"


def usage(verb: str | None = None) -> str:
    """The help text of all verbs, or of one."""
    command = _command()
    if verb is None:
        rows = [f"  {name:<12}{(fn.__doc__ or '').strip()}" for name, (fn, _, _) in VERBS.items()]
        return "\n".join(
            [
                f"usage: {command} VERB [FLAGS]",
                "",
                "AlexNet of 2012 as two towers in JAX.",
                "",
                *rows,
                "",
                f"{command} VERB --help   shows the flags of a verb.",
            ]
        )
    fn, names, example = VERBS[verb]
    takes = "[FLAGS] IMAGE..." if "images" in names else "[FLAGS]" if names else ""
    lines = [f"usage: {command} {verb} {takes}".rstrip(), "", (fn.__doc__ or "").strip(), ""]
    lines += [f"  --{name:<12}{arguments.meaning(name)}" for name in names]
    if "config" in names:
        known = f"Configurations by name: {', '.join(find.names())}"
        lines += ["", *textwrap.wrap(known, 100), f"The fields of each: {command} fields"]
    if "weights" in names:
        lines += ["", f"Networks by name: {', '.join(named.names())}"]
    return "\n".join([*lines, "", f"example: {command} {verb} {example}".rstrip()])


def main(typed: list[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    _quiet_libraries()
    try:
        if typed is None:
            typed = sys.argv[1:]
            _find_modules_here()
        code = _run(typed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `... | head`
        return NOBODY_READS
    except UsageError as error:
        code, text = 2, f"error: {error}"
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except Exception as error:
        code, text = 1, traceback.format_exc()
        if isinstance(error, ValueError) and "jax._src" in sys.modules and "jax" not in sys.modules:
            code, text = 2, f"error: a variable of the environment: {error}"
        elif not _is_one_of_several():
            raise
        elif _lost_another(error):
            reason = str(error).strip().splitlines()[0]
            code = LOST_ANOTHER
            text = f"error: another process of this run is gone ({reason}); {_RESUME}"
    print(text, file=sys.stderr, flush=True)
    if _is_one_of_several():
        from alexnet_jax.parallel.agreement import leave

        leave(code, alone=code == LOST_ANOTHER)
    return code


def _find_modules_here() -> None:
    """Lets `config.imports` find modules in the current folder, as `python -m` does.

    Raises:
      UsageError: the folder is gone, in which nothing could be found or written.
    """
    try:
        here = os.getcwd()
    except OSError as error:
        raise UsageError("the current folder has been removed: change to another") from error
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.append(here)


def _is_one_of_several() -> bool:
    """Whether other processes take part in this run, found without starting JAX."""
    if "jax" not in sys.modules:
        return False
    from alexnet_jax.parallel.agreement import processes

    return processes() > 1


def _quiet_libraries() -> None:
    """Silences the logs of Orbax and the warnings of Pillow, and lets every name be printed."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # Of files that it reads nevertheless.
    if isinstance(sys.stdout, io.TextIOWrapper):  # Names need not be in the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    # It logs the traceback of every error that it raises.
    logging.set_verbosity(logging.FATAL)
    ordinary = sys.unraisablehook

    def hook(error: Any) -> None:
        # Raised by pending writes of TensorStore after Orbax has given up a save on a full disk,
        # and by a loop that could not be opened, for lack of files, as it is thrown away.
        thrown_away = getattr(error.object, "__qualname__", "") == "BaseEventLoop.__del__"
        if str(error.exc_value) != "Event loop is closed" and not thrown_away:
            ordinary(error)

    sys.unraisablehook = hook


def _lost_another(error: Exception) -> bool:
    import jax

    lost = isinstance(error, jax.errors.JaxRuntimeError)
    return lost and "RESOURCE_EXHAUSTED" not in str(error)


if __name__ == "__main__":
    sys.exit(main())
