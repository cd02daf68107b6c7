"""How soon training begins: the first start of a configuration, and the second.

    python -m benchmarks.start --config=experiments/imagenet.py:paper --config.data.mean=channel

(With a mean image the first start of all would be the one that computes it.) Each round has an
empty compilation cache of its own and starts `train` twice, until the first step's line is printed.
Writes start-CONFIG.json under --out.
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

HERE = Path(__file__).parent


def first_step(config: str, extra: list[str], cache: str) -> float:
    """Seconds from the command to the end of its first step."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable, "-m", "alexnet_jax", "train",
            f"--config={config}", f"--workdir={workdir}", *extra,
        ]  # fmt: skip
        before = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=HERE.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env=dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache),
        )  # fmt: skip
        for line in process.stderr:
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - before
                process.kill()
                process.communicate()
                return seconds
        raise SystemExit(f"{' '.join(command)} ended before its first step")


def main() -> None:
    """Measures and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/imagenet.py:paper")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args, extra = parser.parse_known_args()
    seconds = {"first": [], "second": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for values in seconds.values():
                values.append(first_step(args.config, extra, cache))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {"config": args.config, "flags": extra, "seconds": seconds, "median": medians}
    result["second_by_first"] = medians["second"] / medians["first"]
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"start-{Path(args.config.partition(':')[0]).stem}.json"
    (args.out / name).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
