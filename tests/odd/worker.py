"""Runs verbs in forks of one process that has imported everything, and says what became of them.

Reads one JSON object per line: `calls` (the words of each verb), `out` (a folder for the outputs),
`cwd` and `seconds` (the limit per call). The calls of one object run one after the other in one
fork. Answers with one line of JSON: a list of (exit code, peak megabytes, seconds) per call; the
code is -1 for a call that took too long, and -N for one that signal N ended.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path


def _import() -> None:
    import jax  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import onnx  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import safetensors  # noqa: F401

    import alexnet_jax.analysis.bench
    import alexnet_jax.analysis.report
    import alexnet_jax.analysis.verify
    import alexnet_jax.cli.main
    import alexnet_jax.training.api
    import alexnet_jax.training.loop  # noqa: F401
    from alexnet_jax.data.tensorflow_cpu import import_tensorflow

    import_tensorflow()


def _call(words: list[str], out: Path) -> int:
    from alexnet_jax.cli.main import main

    for number, suffix in ((1, "out"), (2, "err")):
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(out.with_suffix(f".{suffix}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    try:
        return int(main(words) or 0)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _child(job: dict, report: Path) -> None:
    import resource

    os.chdir(job["cwd"])
    for number, words in enumerate(job["calls"]):
        begun = time.monotonic()
        signal.alarm(job["seconds"])
        code = _call(words, Path(job["out"]) / str(number))
        signal.alarm(0)
        sys.stdout.flush()
        sys.stderr.flush()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        with report.open("a") as file:
            file.write(json.dumps([code, peak, round(time.monotonic() - begun, 2)]) + "\n")
    os._exit(0)


def _run(job: dict) -> list:
    report = Path(job["out"]) / "report"
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    report.touch()
    child = os.fork()
    if not child:
        try:
            _child(job, report)
        finally:
            os._exit(99)
    _, status, usage = os.wait4(child, 0)
    done = [json.loads(line) for line in report.read_text().splitlines()]
    if len(done) < len(job["calls"]):
        code = os.waitstatus_to_exitcode(status)
        code = -1 if code == -signal.SIGALRM else code
        done.append([code, usage.ru_maxrss // 1024, 0.0])
    return done


def main() -> None:
    """Answers until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
