"""The first answer: one photograph from a cold start, beside torchvision, and calls from Python.

    python -m benchmarks.answer --torch_python=benchmarks/.venv/bin/python

In each round every program starts anew and classifies the photograph of the documentation; they
take turns. A first start, not timed, fills the caches (compiled programs, pages of the disk).
Writes answer.json and answer.md into --out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.run import processor

HERE = Path(__file__).parent
IMAGE = str(HERE.parent / "docs" / "photograph.jpg")
CALLS = """
import json, sys, time
import numpy as np
import alexnet_jax
net = alexnet_jax.load(sys.argv[1])
side, seconds = net.config.data.image_size, []
image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
for _ in range(11):
    before = time.perf_counter()
    net.predict(image)
    seconds.append(time.perf_counter() - before)
print(json.dumps(seconds))
"""


def once(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory, in GB, of a process."""
    before = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command}: {error.decode()}")
    return time.perf_counter() - before, used.ru_maxrss * 1024 / 1e9


def measure(rounds: int, torch_python: str) -> dict:
    """Cold starts by program, and the seconds of successive calls in one process."""
    with tempfile.TemporaryDirectory() as folder:
        full, theirs = f"{folder}/full.safetensors", f"{folder}/alexnet.pth"
        make = "import sys, alexnet_jax; alexnet_jax.create('source').save(sys.argv[1])"
        subprocess.run([sys.executable, "-c", make, full], check=True)
        peer = [torch_python, str(HERE / "torchvision_peer.py")]
        subprocess.run([*peer, "save", theirs], check=True)
        ours = [sys.executable, "-m", "alexnet_jax", "predict"]
        programs = {
            "this project, full network": [*ours, f"--weights={full}", IMAGE],
            "this project, network of the package": [*ours, "--weights=imagenette", IMAGE],
            "torchvision's AlexNet": [*peer, "predict", theirs, IMAGE],
        }
        found = {name: [] for name in programs}
        for number in range(rounds + 1):
            for name, command in programs.items():
                result = once(command)
                if number:
                    found[name].append(result)
                    print(f"{number}: {name}: {result[0]:.2f} s", file=sys.stderr)
        calls = {
            "this project, full network": [sys.executable, "-c", CALLS, full],
            "this project, network of the package": [sys.executable, "-c", CALLS, "imagenette"],
            "torchvision's AlexNet": [*peer, "time", theirs],
        }
        for command in calls.values():  # fills the caches
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {
            name: {
                "seconds": [seconds for seconds, _ in found[name]],
                "peak_gb": statistics.median(gb for _, gb in found[name]),
                "calls": json.loads(subprocess.check_output(command)),
            }
            for name, command in calls.items()
        }


def table(results: dict) -> str:
    """The results as Markdown."""
    ours = statistics.median(results["this project, full network"]["seconds"])
    lines = [
        "| one photograph | cold start, s (least to most) | full network / it | peak memory, GB | "
        "first call on an array, ms | later calls, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        times, (first, *later) = row["seconds"], row["calls"]
        middle = statistics.median(times)
        lines.append(
            f"| {name} | {middle:.2f} ({min(times):.2f} to {max(times):.2f}) | {ours / middle:.2f} "
            f"| {row['peak_gb']:.2f} | {1e3 * first:.0f} | {1e3 * statistics.median(later):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--torch_python", required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    results = measure(args.rounds, args.torch_python)
    args.out.mkdir(parents=True, exist_ok=True)
    where = {"processor": processor(), "cores": os.cpu_count()}
    (args.out / "answer.json").write_text(json.dumps(where | {"programs": results}, indent=2))
    count = len(results["torchvision's AlexNet"]["seconds"])
    head = f"{where['processor']}, {where['cores']} cores: medians of {count} starts in turns.\n\n"
    (args.out / "answer.md").write_text(head + table(results))
    print(table(results))


if __name__ == "__main__":
    main()
