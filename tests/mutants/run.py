"""Runs every mutant of `tests/mutants/*.toml` against the test that should notice it.

    make mutants                      all of them; writes tests/mutants/table.md
    python -m tests.mutants.run WORD  those whose file, description or test contains WORD

A mutant is one mistake in one line of the package. For each, the repository is laid out again in a
temporary folder with that line changed, and pytest runs the mutant's own test there. The mutant is
killed if that test fails by an assertion (or by the exception that the mutant names), so that a
syntax error or a missing import does not count. The same tests must pass on the package as it is.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("table.md")
PACKAGE = "alexnet_jax"
_ASSERTED = ("assert", "AssertionError", "Failed: DID NOT RAISE")
_TIMEOUT = 300  # seconds


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
      file: of the package, such as `models/tower.py`.
      what: goes wrong, in a few words.
      old: text that occurs once in the file.
      new: what stands there instead.
      test: the pytest node that fails.
      raises: the exception by which it fails, where that is not an assertion.
    """

    file: str
    what: str
    old: str
    new: str
    test: str
    raises: str = ""

    def apply(self, text: str) -> str:
        """The text of the file with the mistake in it.

        Raises:
          ValueError: `old` does not occur exactly once.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: {text.count(self.old)} occurrences of {self.old!r}")
        return text.replace(self.old, self.new)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant: why it was killed, or an empty `reason` if it survived."""

    reason: str
    seconds: float
    output: str


def read() -> list[Mutant]:
    """All mutants, file by file."""
    return [
        Mutant(**row)
        for path in sorted(Path(__file__).parent.glob("*.toml"))
        for row in tomllib.loads(path.read_text())["mutant"]
    ]


def attempt(mutant: Mutant) -> Outcome:
    """Runs the mutant's test on a copy of the repository that holds the mistake."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        _lay_out(folder)
        path = folder / PACKAGE / mutant.file
        path.write_text(mutant.apply(path.read_text()))
        begun = time.perf_counter()
        try:
            done, failures = _pytest(folder, [mutant.test], timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return Outcome("", time.perf_counter() - begun, f"not done after {_TIMEOUT} s")
        seconds = time.perf_counter() - begun
    output = done.stdout[-3000:] + done.stderr[-1000:]
    if done.returncode != 1:  # 1: tests ran, and some failed
        return Outcome("", seconds, output)
    reason = next(
        (
            text
            for text in failures
            if (mutant.raises in text if mutant.raises else text.startswith(_ASSERTED))
        ),
        "",
    )
    return Outcome(reason, seconds, output)


def _lay_out(folder: Path) -> None:
    """Everything of the repository by links, but the package as a copy."""
    subprocess.run(["cp", "-r", str(ROOT / PACKAGE), str(folder / PACKAGE)], check=True)
    for path in ROOT.iterdir():
        if path.name not in (PACKAGE, "site", "runs") and not path.name.startswith(".pytest"):
            (folder / path.name).symlink_to(path)
    # A folder of its own and not a link: pytest would follow it back to the real package.
    (folder / "tests").unlink()
    subprocess.run(["cp", "-r", str(ROOT / "tests"), str(folder / "tests")], check=True)


def _pytest(
    folder: Path, nodes: list[str], *more: str, timeout: float | None = None
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs pytest and returns, besides, the first line of the message of each failure."""
    results = folder / "results.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", "not slow",
         f"--junitxml={results}", *more, *nodes],
        cwd=folder, capture_output=True, text=True, timeout=timeout,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    failures = []
    if results.exists():
        for failure in ElementTree.parse(results).iter("failure"):
            failures.append(failure.get("message", "").partition("\n")[0])
    return done, failures


def table(rows: list[tuple[Mutant, Outcome]]) -> str:
    """`table.md`."""
    lines = [
        "# Mutants",
        "",
        f"{len(rows)} mistakes of one line, each with the test of `make test` that fails by it. "
        "Written by `make mutants`; seconds include the start of Python.",
        "",
        "| file | mistake | killed by | seconds |",
        "|---|---|---|---:|",
    ]
    for mutant, outcome in rows:
        test = mutant.test.removeprefix("tests/")
        lines.append(f"| {mutant.file} | {mutant.what} | `{test}` | {outcome.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 0 if every mutant is killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("word", nargs="?", default="", help="only mutants that contain it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    mutants = [m for m in read() if options.word in f"{m.file} {m.what} {m.test}"]
    print(f"{len(mutants)} mutants; first their tests on the package as it is", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lay_out(folder)
        nodes = sorted({m.test for m in mutants})
        done, _ = _pytest(folder, nodes, "-n", str(options.jobs), "--dist", "loadfile")
        if done.returncode:
            print(done.stdout[-5000:])
            return 1
    rows, survived = [], 0
    with (
        tempfile.TemporaryDirectory() as programs,
        concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
    ):
        # JAX finds a program by its text, so that no mutant gets that of another.
        os.environ["TEST_PROGRAMS"] = programs
        for mutant, outcome in zip(mutants, pool.map(attempt, mutants), strict=True):
            rows.append((mutant, outcome))
            survived += not outcome.reason
            verdict = "killed" if outcome.reason else "SURVIVED"
            print(f"{verdict} {outcome.seconds:5.1f} s  {mutant.file}: {mutant.what}", flush=True)
            if not outcome.reason:
                print(f"  {mutant.test}\n{outcome.output}", flush=True)
    print(f"{len(rows) - survived} killed, {survived} survived")
    if not options.word and not survived:
        TABLE.write_text(table(rows))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
