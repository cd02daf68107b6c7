"""`make bench`: this project, TensorFlow, PyTorch and plain Flax, measured in turns in one run.

Each implementation has its own process, which compiles once and then waits. In every round each of
them in turn runs a few training steps and a few forward passes; the order is shifted by one from
round to round. NumPy's matrix product is measured in between. Medians and their ratios are written
to NAME.md and NAME.json in --out.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PEERS = {
    "ours": ["{python}", "ours.py"],
    "ours under vmap": ["{python}", "ours.py", "--placement=vmap"],
    "TensorFlow": ["{python}", "tensorflow_peer.py"],
    "TensorFlow, XLA": ["{python}", "tensorflow_peer.py", "--xla"],
    "PyTorch": ["{torch}", "torch_peer.py"],
    "PyTorch, compiled": ["{torch}", "torch_peer.py", "--compile"],
    "plain Flax": ["{python}", "flax_peer.py"],
    "plain Flax, tuned": ["{python}", "flax_peer.py", "--tuned"],
}
TUNED = {
    "ours": "one tower per device (`pmap`); all that NOTES.md says",
    "ours under vmap": "the same on one device",
    "TensorFlow": "oneDNN, `tf.function`",
    "TensorFlow, XLA": "`jit_compile=True`",
    "PyTorch": "oneDNN, channels last",
    "PyTorch, compiled": "the same and `torch.compile`",
    "plain Flax": "nothing",
    "plain Flax, tuned": "the flag of XLA that this project sets; donation of the state",
}


class Worker:
    """One implementation, in its own process."""

    def __init__(self, command: list[str], batch_size: int):
        """Starts the process and waits until the network is built."""
        # So that ours.py finds the package in the checkout; the peers do not import it.
        environment = dict(os.environ, PYTHONPATH=str(HERE.parent), TF_CPP_MIN_LOG_LEVEL="3")
        # Huge pages for all of them, as the command of this project asks for (`cli.process`).
        environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        self._process = subprocess.Popen(
            [*command, f"--batch_size={batch_size}"], cwd=HERE, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.about = self._answer()

    def time(self, mode: str, steps: int) -> dict[str, float]:
        """The time of `steps` steps in seconds, and the peak memory of the process so far."""
        self._process.stdin.write(f"{mode} {steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._process.args)} ended; its message is above")
        return json.loads(line)


def matrix_product(size: int = 4096) -> float:
    """Float32 operations per second of NumPy's matrix product, the peak that libraries reach."""
    a = np.ones((size, size), np.float32)
    before = time.perf_counter()
    a @ a
    return 2 * size**3 / (time.perf_counter() - before)


def main() -> None:
    """Runs the benchmark and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="training steps per measurement")
    parser.add_argument("--only", default=";".join(PEERS), help="names, separated by semicolons")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="step", help="of the files: one for each machine")
    args = parser.parse_args()
    names = [name for name in PEERS if name in args.only.split(";")]

    workers, peaks = {}, {}
    for name in names:
        command = [
            part.format(python=sys.executable, torch=args.torch_python) for part in PEERS[name]
        ]
        workers[name] = Worker(command, args.batch_size)
        # Compiles, and lets memory reach its peak, before anything is timed.
        peaks[name] = workers[name].time("train", 3)["peak_bytes"]
        workers[name].time("forward", 1)
        print(f"{name}: ready, {workers[name].about}", flush=True)

    seconds = {name: {"train": [], "forward": []} for name in names}
    products = []
    for number in range(args.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            products.append(matrix_product())
            for mode, steps in (("train", args.steps), ("forward", 2 * args.steps)):
                # A program that gives memory back between its turns gets it anew in the first step.
                workers[name].time(mode, 1)
                seconds[name][mode].append(workers[name].time(mode, steps)["seconds"] / steps)
        print(f"round {number + 1} of {args.rounds}", flush=True)
    for worker in workers.values():
        worker.stop()

    result = {
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "matrix_product_gflops": statistics.median(products) / 1e9,
        "implementations": {
            name: {
                "about": workers[name].about,
                "peak_gb": peaks[name] / 1e9,
                "seconds": seconds[name],
                **{
                    f"{mode}_images_per_second": args.batch_size
                    / statistics.median(seconds[name][mode])
                    for mode in ("train", "forward")
                },
            }
            for name in names
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    text = table(result)
    (args.out / f"{args.name}.md").write_text(text)
    print(text)


def table(result: dict) -> str:
    """The result in Markdown: medians, ratios to this project, memory."""
    rows = result["implementations"]
    peak = result["matrix_product_gflops"]
    lines = [
        f"Batch {result['batch_size']}, float32, {result['machine']}: medians of "
        f"{result['rounds']} rounds in turns. NumPy's matrix product runs at {peak:.0f} GFLOP/s in "
        "the same rounds. Every process has huge pages (`glibc.malloc.hugetlb=1`).",
        "",
        "| | training step, images/s | ours / it | forward, images/s | ours / it "
        "| peak memory, GB | tuned by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name]
        for mode in ("train", "forward"):
            speed = row[f"{mode}_images_per_second"]
            ours = rows.get("ours", row)[f"{mode}_images_per_second"]
            cells += [f"{speed:.1f}", f"{ours / speed:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{row['peak_gb']:.2f}", TUNED[name]]) + " |")
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
