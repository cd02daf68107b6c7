"""Time until training begins: the first start of a configuration, and the second.

    python -m benchmarks.start

Each round has its own empty cache for compiled programs and mean images. It starts `train` twice in
new workdirs and measures the time until the line of the first step is printed, which includes the
step itself. The cost of a mean image grows with the data, so one case reads a folder, COPIES, that
holds each photograph ten times. Writes start.json and start.md into --out.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
CASES = {
    "`imagenet.py:paper`, with a constant mean": [
        "--config=experiments/imagenet.py:paper",
        "--config.data.mean=channel",
    ],
    "`imagenet.py:paper`": ["--config=experiments/imagenet.py:paper"],
    "`imagenet.py:paper`, each photograph ten times": [
        "--config=experiments/imagenet.py:paper",
        "--config.data.source=folder:COPIES",
    ],
    "`cifar10_2012.py:18pct`": ["--config=experiments/cifar10_2012.py:18pct"],
}


def write_files(folder: Path, times: int) -> None:
    """Writes the photographs as image files, one folder per class, each of them `times` times."""
    import numpy as np

    from alexnet_jax.data.sources import open_source

    for split in ("train", "validation"):
        source = open_source("tfds:imagenet2012", split)
        encoded, labels = source.read(np.arange(source.num_examples))
        for number, (image, label) in enumerate(zip(encoded, labels, strict=True)):
            path = folder / split / source.class_names[label]
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{number}-0.jpg").write_bytes(image)
            for copy in range(1, times):
                os.link(path / f"{number}-0.jpg", path / f"{number}-{copy}.jpg")


def first_step(flags: list[str], cache: str) -> tuple[float, int]:
    """Seconds from the command to the end of the first step, and the number of training images."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "alexnet_jax", "train", f"--workdir={workdir}", *flags]
        before = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=HERE.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env=dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache),
        )  # fmt: skip
        images = 0
        for line in process.stderr:
            if found := re.search(r"(\d+) training images", line):
                images = int(found[1])
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - before
                process.kill()
                process.communicate()
                return seconds, images
        raise SystemExit(f"{' '.join(command)} ended before its first step")


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    result = {name: {"flags": flags, "first": [], "second": []} for name, flags in CASES.items()}
    with tempfile.TemporaryDirectory() as copies:
        write_files(Path(copies), 10)
        for _ in range(args.rounds):
            for case in result.values():
                flags = [flag.replace("COPIES", copies) for flag in case["flags"]]
                with tempfile.TemporaryDirectory() as cache:
                    for which in ("first", "second"):
                        seconds, case["images"] = first_step(flags, cache)
                        case[which].append(seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "start.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.out / "start.md").write_text(table(result))
    print(table(result))


def table(result: dict) -> str:
    """The medians in Markdown."""
    lines = [
        "| config | training images | first start, s | second, s | second / first |",
        "|---|---|---|---|---|",
    ]
    for name, case in result.items():
        first, second = (statistics.median(case[which]) for which in ("first", "second"))
        lines.append(
            f"| {name} | {case['images']} | {first:.1f} | {second:.1f} | {second / first:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
