"""Puts odd folders, images, files of weights and environments before every verb.

    python -m tests.odd [KIND ...] [--jobs=2] [--only=TEXT] [--verbs=A,B] [--out=FILE.md]

KIND is `folders`, `images`, `weights` or `environments`; all of them take about a quarter of an
hour on two cores. Each call has to answer rightly, or with one line and exit code 2, without a
traceback, below 2 GB and in four minutes. Writes the counts as a table, and each call that did not
do so with its output. Exit code 1 if there is one.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.odd.environments import ENVIRONMENTS, Environment, permissions_count
from tests.odd.folders import CLASSES, FOLDERS, good, picture
from tests.odd.images import images, truth
from tests.odd.weights import WEIGHTS

ROOT = Path(__file__).parents[2]
MEMORY = 2000  # megabytes
SECONDS = 240
RIGHT, REFUSED = "right", "refused"
SOME_FAILED = 5  # of `study`, with a line per run
DIFFERENT = 4  # of `verify`, on images that are not those of the run
ALSO_FINE = {130: "stopped", 143: "stopped", 141: "stopped"}

CONFIG = """
from tests.support import tiny_config

def get_config():
    config = tiny_config()
    config.unlock()
    config.batch_size = 8
    config.model.num_classes = 3
    config.data.source = "folder:" + {folder!r}
    config.data.validation_split = ""
    config.evaluate.splits = ("validation",)
    config.checkpoint_every_steps = 2
    config.log_every_steps = 2
    config.model.activation = "relu"
    return config.lock()
"""

STUDY = (
    CONFIG.replace("def get_config", "def base")
    + """
def get_config():
    from alexnet_jax.analysis import study

    return study.study(base(), {{"base": {{}}}}, (0,), title="odd")
"""
)


@dataclasses.dataclass
class Call:
    """One verb with its input.

    Attributes:
      kind: of the input.
      name: of the input.
      verb: that is run.
      words: that are typed after the program's name.
      check: from the standard output to what is wrong with it, or an empty text; only asked if the
        verb says that it did its work.
      must: "answer" or "refuse" if only that is right.
      outcome: in one or two words.
      detail: what there is to know about it.
    """

    kind: str
    name: str
    verb: str
    words: list[str]
    check: Callable[[str], str] = lambda out: ""
    must: str = ""
    outcome: str = ""
    detail: str = ""
    peak: int = 0
    seconds: float = 0.0

    def judge(self, code: int, peak: int, seconds: float, out: str, err: str) -> None:
        """Sets the outcome."""
        self.peak, self.seconds, self.detail = peak, seconds, err.strip()[-1500:]
        lines = [line for line in err.splitlines() if line.strip()]
        if code == -1:
            self.outcome = "TOO LONG"
        elif peak > MEMORY:
            self.outcome = "MEMORY"
            self.detail = f"{peak} MB; {self.detail}"
        elif "Traceback (most recent call last)" in err:
            self.outcome = "TRACEBACK"
        elif code == 0:
            wrong = self.check(out) or ("did not refuse" if self.must == "refuse" else "")
            self.outcome = "WRONG" if wrong else RIGHT
            self.detail = f"{wrong}; {self.detail}" if wrong else self.detail
        elif code == SOME_FAILED and self.verb == "study" and self.must != "answer":
            self.outcome = REFUSED
        elif code in ALSO_FINE or (code == DIFFERENT and self.verb == "verify"):
            self.outcome = ALSO_FINE.get(code, "differs")
        elif code != 2:
            self.outcome = f"CODE {code}"
        elif self.must == "answer":
            self.outcome = "REFUSED WHAT IS RIGHT"
        elif self.verb != "doctor" and not self._is_one_line(lines):
            self.outcome = f"{len(lines)} LINES" if lines else "NO LINE"
        else:
            self.outcome = REFUSED

    def _is_one_line(self, lines: list[str]) -> bool:
        """Whether there is one line, the last, but for those that say how far the verb is.

        A line that begins with `folder:` says what was found, and `predict` has one for each file.
        """
        said = [line for line in lines if not line.startswith("folder:")]
        errors = [n for n, line in enumerate(said) if "error: " in line]
        if self.verb == "predict":
            return len(errors) == len(said) > 0
        if self.verb in ("train", "verify", "prepare", "study"):
            return errors == [len(said) - 1]
        return len(said) == 1

    @property
    def is_fine(self) -> bool:
        """Whether it did what it should."""
        return self.outcome.islower()


class Worker:
    """A process that runs calls in forks of itself."""

    def __init__(self, scratch: Path, log: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.odd.worker"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
            env=ordinary(scratch), preexec_fn=permissions_count,
        )  # fmt: skip
        self._scratch = scratch

    def run(self, calls: list[Call], seconds: int = SECONDS) -> None:
        """Runs and judges the calls, one after the other in one process."""
        while calls:
            with tempfile.TemporaryDirectory(dir=self._scratch) as out:
                job = {"calls": [c.words for c in calls], "out": out, "cwd": str(self._scratch),
                       "seconds": seconds}  # fmt: skip
                self._process.stdin.write(json.dumps(job) + "\n")
                self._process.stdin.flush()
                done = json.loads(self._process.stdout.readline())
                for number, (call, result) in enumerate(zip(calls, done, strict=False)):
                    texts = [
                        path.read_text(errors="replace") if path.exists() else ""
                        for path in (Path(out) / f"{number}.out", Path(out) / f"{number}.err")
                    ]
                    call.judge(*result, *texts)
            calls = calls[len(done) :]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def ordinary(scratch: Path) -> dict[str, str]:
    """The environment of an ordinary shell, with a cache of compiled programs."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TFDS_DATA_DIR")}
    return kept | {
        "HOME": str(scratch / "home"), "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "programs"), "PYTHONDONTWRITEBYTECODE": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }  # fmt: skip


class Campaign:
    """What all calls share: a good folder `D`, a run `W` on it, its weights, a configuration."""

    def __init__(self, scratch: Path, jobs: int, only: str, verbs: str) -> None:
        self.scratch, self.only, self.verbs = scratch, only, verbs.split(",")
        self.calls: list[Call] = []
        (scratch / "home").mkdir()
        self.D, self.W, self.config = scratch / "D", scratch / "W", scratch / "tiny.py"
        good(self.D)
        self.config.write_text(CONFIG.format(folder=str(self.D)))
        self._lock = threading.Lock()
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self.workers: queue.Queue[Worker] = queue.Queue()
        for number in range(jobs):
            self.workers.put(Worker(scratch, scratch / f"worker{number}.log"))
        self.weights = {s: scratch / f"good{s}" for s in (".safetensors", ".onnx")}
        first = [
            Call("base", "D", "train", self.train(self.D, self.W), must="answer"),
            *(Call("base", "W", "export", ["export", f"--workdir={self.W}", f"--out={path}"],
                   must="answer") for path in self.weights.values()),
        ]  # fmt: skip
        self.do([first], note=False)
        for call in first:
            if not call.is_fine:
                raise SystemExit(f"{call.verb} of good images: {call.outcome}: {call.detail}")

    def train(self, folder: Path, workdir: Path, *more: str) -> list[str]:
        """The words that train on a folder for one epoch."""
        return ["train", f"--config={self.config}", f"--config.data.source=folder:{folder}",
                f"--workdir={workdir}", *more]  # fmt: skip

    def study(self, folder: Path, place: Path) -> list[str]:
        """The words that run a study of one run on a folder."""
        config = place / "study.py"
        config.write_text(STUDY.format(folder=str(folder)))
        return ["study", f"--config={config}", f"--workdir={place / 'study'}"]

    def do(self, groups: list[list[Call]], note: bool = True) -> None:
        """Runs groups of calls, each in one process."""

        def run(group: list[Call]) -> None:
            group = [call for call in group if not note or self.wants(call)]
            worker = self.workers.get()
            try:
                worker.run(group)
            finally:
                self.workers.put(worker)
            if note:
                self.note(group)

        list(self.pool.map(run, groups))

    def wants(self, call: Call) -> bool:
        """Whether the verb of a call is one of those asked for."""
        return self.verbs == [""] or call.verb in self.verbs

    def note(self, group: list[Call]) -> None:
        """Keeps the calls for the table, and prints those that are not as they should be."""
        with self._lock:
            self.calls += group
            for call in group:
                if not call.is_fine:
                    last = call.detail.splitlines()[-1:] or [""]
                    print(f"{call.kind}: {call.name!r}: {call.verb}: {call.outcome}: "
                          f"{last[0][:200]}", flush=True)  # fmt: skip

    def run_on(self, folder: Path, workdir: Path) -> None:
        """A copy of the run `W` whose images are in another folder."""
        shutil.copytree(self.W, workdir)
        text = (workdir / "config.json").read_text()
        config = json.loads(text)
        config["data"]["source"] = f"folder:{folder}"
        (workdir / "config.json").write_text(json.dumps(config))

    def close(self) -> None:
        """Ends the workers."""
        self.pool.shutdown()
        while not self.workers.empty():
            self.workers.get().close()


def folders(campaign: Campaign) -> None:
    """Each folder before the verbs that read folders."""
    groups = []
    for number, (name, make) in enumerate(FOLDERS.items()):
        if campaign.only not in name:
            continue
        place = campaign.scratch / f"folder{number}"
        place.mkdir()
        d = place / "D"
        shutil.copytree(campaign.D, d)
        expected = make(d)
        campaign.run_on(d, place / "W")
        config = [f"--config={campaign.config}", f"--config.data.source=folder:{d}"]

        def classes(out: str, place: Path = place, expected=expected) -> str:
            del out
            found = tuple(json.loads((place / "new" / "classes.json").read_text()))
            return "" if not expected or found == expected else f"{found} in place of {expected}"

        one_sided = name in ("Cat in test, cat in train", "a class in test only")
        trains = "answer" if expected else "refuse" if expected == () and not one_sided else ""
        of_run = "answer" if expected == CLASSES else "refuse" if expected == () else ""
        words = {
            "inspect": (["inspect", *config], "", None),
            "statistics": (["statistics", *config, f"--workdir={place / 's'}"], trains, None),
            "prepare": (["prepare", *config, f"--out={place / 'p'}"], trains, None),
            "train": (campaign.train(d, place / "new"), trains, classes),
            "study": (campaign.study(d, place), "", None),
            "bench": (["bench", *config, "--rounds=1", "--steps=1"], "", None),
            "predict": (["predict", f"--workdir={campaign.W}", "--format=json", str(d)], "", None),
            "evaluate": (["evaluate", f"--workdir={place / 'W'}"], of_run, None),
            "report": (["report", f"--workdir={place / 'W'}"], "", None),
            "verify": (["verify", f"--workdir={place / 'W'}"], "", None),
        }
        groups.append([
            Call("folders", name, verb, typed, must=must, **({"check": check} if check else {}))
            for verb, (typed, must, check) in words.items()
        ])  # fmt: skip
    campaign.do(groups)


def enliven(path: Path, out: Path) -> None:
    """The network of a file with random weights so large that its answers depend on the image."""
    rng = np.random.default_rng(0)
    with safe_open(path, framework="numpy") as file:
        arrays, about = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    for name, array in arrays.items():
        if name.endswith("weight"):
            scale = np.sqrt((8 if name.startswith("fc8") else 2) / np.prod(array.shape[1:]))
            arrays[name] = rng.normal(0, scale, array.shape).astype(np.float32)
    save_file(arrays, out, about)


def images_(campaign: Campaign) -> None:
    """Each image file alone before `predict`, and in a folder before the others."""
    place = campaign.scratch / "images"
    place.mkdir()
    files, control = [], []
    for number, (what, suffix, content) in enumerate(images()):
        if campaign.only not in what:
            continue
        path = place / f"odd{number}.{suffix}"
        path.write_bytes(content)
        copy = place / f"truth{number}.png"
        if (image := truth(content)) is None:
            copy = None if "200 MB" not in what else Path()  # which others may read
        elif image.width * image.height > 10**7:
            copy = Path()
        else:
            image.save(copy)
            control.append(str(copy))
        files.append((what, path, copy))
    lively = place / "lively.safetensors"
    enliven(campaign.weights[".safetensors"], lively)
    predict = ["predict", f"--weights={lively}", "--format=json"]
    found: dict[str, dict[str, float]] = {}

    def read(line: str) -> tuple[str, dict[str, float]]:
        row = json.loads(line)
        return row["image"], {b["class"]: b["probability"] for b in row["best"]}

    def remember(out: str) -> str:
        found.update(map(read, out.splitlines()))
        return ""

    first = [Call("base", "truth", "predict", [*predict, *control], remember, must="answer")]
    campaign.do([first], note=False)
    assert first[0].is_fine, first[0].detail
    spread = [max(best.values()) - min(best.values()) for best in found.values()]
    assert not spread or max(spread) > 0.5, "the run tells no images apart"

    def like(copy: Path | None) -> Callable[[str], str]:
        def check(out: str) -> str:
            if copy is None:
                return "answered what Pillow does not read, or reads otherwise"
            if copy == Path():
                return ""
            (_, best), true = read(out), found[str(copy)]
            apart = max(abs(best[name] - value) for name, value in true.items())
            return "" if apart < 0.02 else f"probabilities differ by {apart:.3f}"

        return check

    calls = [
        Call("images", what, "predict", [*predict, str(path)], like(copy))
        for what, path, copy in files
    ]
    for number, (what, path, _) in enumerate(files):
        d = place / f"D{number}"
        for split in ("train", "test"):
            for name in CLASSES:
                for i in range(3):
                    source = campaign.D / split / name / f"{i}.jpg"
                    (d / split / name).mkdir(parents=True, exist_ok=True)
                    os.link(source, d / split / name / f"{i}.jpg")
        os.link(path, d / "train" / "cat" / path.name)
        config = [f"--config={campaign.config}", f"--config.data.source=folder:{d}"]
        calls += [
            Call("images", what, "prepare", ["prepare", *config, f"--out={d}.prepared"]),
            Call("images", what, "statistics", ["statistics", *config, f"--workdir={d}.s"]),
        ]
        if number % 8 == 0:
            calls.append(Call("images", what, "train", campaign.train(d, Path(f"{d}.W"))))
            os.link(path, d / "test" / "cat" / path.name)
            campaign.run_on(d, Path(f"{d}.E"))
            calls += [
                Call("images", what, verb, [verb, f"--workdir={d}.E"])
                for verb in ("evaluate", "report", "verify")
            ]
    # Those of one verb together, twenty to a process.
    calls.sort(key=lambda call: call.verb)
    campaign.do([calls[i : i + 20] for i in range(0, len(calls), 20)])


def weights(campaign: Campaign) -> None:
    """Each file of weights before the verbs that read one."""
    groups, picture_ = [], campaign.D / "test" / "cat" / "0.jpg"
    for number, (name, (suffix, make)) in enumerate(WEIGHTS.items()):
        if campaign.only not in name:
            continue
        place = campaign.scratch / f"weights{number}"
        place.mkdir()
        path = place / f"net{suffix}"
        must = "answer" if make(path, campaign.weights) else "refuse"
        words = {
            "predict": ["predict", f"--weights={path}", "--format=json", str(picture_)],
            "export": ["export", f"--weights={path}", f"--out={place / 'out.onnx'}"],
            "import": ["import", f"--weights={path}", f"--out={place / 'out.safetensors'}"],
            "train": ["train", f"--config=finetune:{path}", "--config.num_epochs=1",
                      f"--config.data.source=folder:{campaign.D}", f"--workdir={place / 'W'}"],
            "inspect": ["inspect", f"--config=finetune:{path}",
                        f"--config.data.source=folder:{campaign.D}"],
        }  # fmt: skip
        groups.append([
            Call("weights", name, verb, typed, must=must) for verb, typed in words.items()
        ])  # fmt: skip
    campaign.do(groups)


def environments(campaign: Campaign) -> None:
    """Each environment before every verb, in a process of its own."""
    scratch = campaign.scratch
    picture(scratch / "photo.jpg")
    groups = []
    for number, (name, environment) in enumerate(ENVIRONMENTS.items()):
        if campaign.only not in name:
            continue
        place = scratch / f"environment{number}"
        shutil.copytree(campaign.W, place / "W")
        for verb, words in {
            "fields": ["fields"],
            "doctor": ["doctor"],
            "inspect": ["inspect", f"--config={campaign.config}"],
            "predict": ["predict", f"--workdir={place / 'W'}", str(scratch / "photo.jpg")],
            "evaluate": ["evaluate", f"--workdir={place / 'W'}"],
            "export": ["export", f"--workdir={place / 'W'}", f"--out={place / 'x.onnx'}"],
            "train": campaign.train(campaign.D, place / "new"),
            "report": ["report", f"--workdir={place / 'W'}"],
            "verify": ["verify", f"--workdir={place / 'W'}"],
            "study": campaign.study(campaign.D, place),
            "bench": ["bench", f"--config={campaign.config}", "--rounds=1", "--steps=1"],
            "prepare": ["prepare", f"--config={campaign.config}", f"--out={place / 'p'}"],
            "statistics": ["statistics", f"--config={campaign.config}", f"--workdir={place / 's'}"],
        }.items():
            trains = verb in ("train", "study", "bench", "verify")
            is_free = not environment.must_answer or (trains and environment.may_not_train)
            must = "" if is_free else "answer"
            groups.append((environment, Call("environments", name, verb, words, must=must)))

    def run(both: tuple[Environment, Call]) -> None:
        environment, call = both
        alone(environment, call, scratch)
        campaign.note([call])

    list(campaign.pool.map(run, [both for both in groups if campaign.wants(both[1])]))


def alone(environment: Environment, call: Call, scratch: Path) -> None:
    """Runs one call in a process and an environment of its own, and judges it."""
    variables: dict[str, str] = ordinary(scratch)
    for name, value in environment.variables.items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        begun = time.monotonic()
        child = os.fork()
        if not child:
            try:
                os.chdir(scratch)
                targets = ("/dev/null", "/dev/full" if environment.full else str(out), str(err))
                for number, target in enumerate(targets):
                    file = os.open(target, os.O_RDWR | os.O_CREAT)
                    os.dup2(file, number)
                environment.before(scratch)
                os.closerange(3, 1000)
                for number in environment.closed:
                    os.close(number)
                command = [sys.executable, "-m", "alexnet_jax", *call.words]
                os.execve(sys.executable, command, variables)
            finally:
                os._exit(98)
        timer = threading.Timer(SECONDS, os.kill, (child, signal.SIGKILL))
        timer.start()
        _, status, usage = os.wait4(child, 0)
        is_late = not timer.is_alive()
        timer.cancel()
        code = -1 if is_late else os.waitstatus_to_exitcode(status)
        texts = [p.read_text(errors="replace") if p.exists() else "" for p in (out, err)]
    if code == 2 and 2 in environment.closed:  # nobody can read why
        texts[1] = texts[1] or "error: (closed)"
    call.judge(code, usage.ru_maxrss // 1024, time.monotonic() - begun, *texts)


KINDS = {"folders": folders, "images": images_, "weights": weights, "environments": environments}


def table(calls: list[Call]) -> Iterator[str]:
    """The counts as Markdown: a row per kind and verb, a column per outcome."""
    counts = collections.Counter((c.kind, c.verb, c.outcome) for c in calls)
    outcomes = sorted({c.outcome for c in calls}, key=lambda o: (o.isupper(), o))
    yield f"| input | verb | {' | '.join(outcomes)} | largest, MB | longest, s |"
    yield f"|---|---|{'---:|' * (len(outcomes) + 2)}"
    for kind, verb in dict.fromkeys((c.kind, c.verb) for c in calls):
        mine = [c for c in calls if (c.kind, c.verb) == (kind, verb)]
        cells = [str(counts[kind, verb, outcome] or "") for outcome in outcomes]
        peak, longest = max(c.peak for c in mine), max(c.seconds for c in mine)
        yield f"| {kind} | {verb} | {' | '.join(cells)} | {peak} | {longest:.0f} |"


def page(calls: list[Call], seconds: float) -> str:
    """The table, and what was not as it should be."""
    wrong = [call for call in calls if not call.is_fine]
    inputs = collections.Counter(kind for kind, _ in {(c.kind, c.name) for c in calls})
    of = ", ".join(f"{count} {kind}" for kind, count in inputs.items())
    lines = ["# Odd inputs", "",
             f"{len(calls)} calls with {of}; {len(wrong)} are not as they should be "
             f"({seconds / 60:.0f} minutes).", "", *table(calls), ""]  # fmt: skip
    for call in wrong:
        lines += [f"- **{call.outcome}** {call.kind}: {call.name!r}: `{shlex.join(call.words)}`",
                  "", "```", call.detail[-700:], "```", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 if a call did not do what it should."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="only inputs whose names contain this")
    parser.add_argument("--verbs", default="", help="only these, with commas between")
    parser.add_argument("--out", type=Path, default=None, help="where to write the page")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="odd-") as name:
        campaign = Campaign(Path(name), options.jobs, options.only, options.verbs)
        try:
            for kind in options.kind or KINDS:
                print(f"{kind}, after {time.monotonic() - begun:.0f} s", flush=True)
                KINDS[kind](campaign)
        finally:
            campaign.close()
            subprocess.run(["chmod", "-R", "u+rwX", name], check=False)
    text = page(campaign.calls, time.monotonic() - begun)
    if options.out:
        options.out.write_text(text)
    print("\n".join(table(campaign.calls)))
    return 1 if any(not call.is_fine for call in campaign.calls) else 0


if __name__ == "__main__":
    sys.exit(main())
