"""A long run observed from outside: memory, open files and threads must not grow.

    python -m benchmarks.soak --minutes=30

Trains the network of the quickstart with a checkpoint every 50 steps and an evaluation every five
epochs, stops it with SIGTERM and checks its exit code. Writes soak.csv and soak.md into --out.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
BLOCKS = 12
SAMPLE_SECONDS = 5


def sample(pid: int) -> dict[str, float]:
    """Resident memory in megabytes, open files and threads of a process.

    The memory of the process itself is counted apart from mapped files. Those are mostly the code
    of libraries, which is loaded when it is first used and does not exceed the size of the files.
    """
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "own_mb": int(status["RssAnon"].split()[0]) / 1024,
        "files_mb": int(status["RssFile"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def slope(seconds: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Change per hour and its standard error, from the means of equal blocks of time.

    Neighbouring samples are correlated, so the standard error of a fit to all of them would be too
    small.
    """
    blocks = [block for block in np.array_split(np.arange(len(values)), BLOCKS) if len(block)]
    x = np.array([seconds[block].mean() for block in blocks]) / 3600
    y = np.array([values[block].mean() for block in blocks])
    (rate, at_start), residuals, *_ = np.linalg.lstsq(
        np.stack([x, np.ones_like(x)], 1), y, rcond=None
    )
    del at_start
    variance = float(residuals[0]) / (len(x) - 2) if len(residuals) else 0.0
    return float(rate), float(np.sqrt(variance / np.sum((x - x.mean()) ** 2)))


def main() -> None:
    """Runs, samples, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [
            sys.executable, "-m", "alexnet_jax", "train", "--config=experiments/quickstart.py",
            f"--workdir={workdir}", "--config.num_epochs=100000.0",
            "--config.checkpoint_every_steps=50",
        ]  # fmt: skip
        run = subprocess.Popen(command, cwd=HERE.parent, stderr=subprocess.DEVNULL)
        start = time.monotonic()
        while time.monotonic() - start < 60 * args.minutes:
            time.sleep(SAMPLE_SECONDS)
            rows.append({"seconds": round(time.monotonic() - start, 1), **sample(run.pid)})
        run.send_signal(signal.SIGTERM)
        code = run.wait(timeout=120)
        log = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
        kept = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    if code != 128 + signal.SIGTERM:
        raise SystemExit(f"the run ended with {code}")
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "soak.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows, log, kept)
    (args.out / "soak.md").write_text(text)
    print(text)


def table(rows: list[dict[str, float]], log: list[dict], kept: list[int]) -> str:
    """The result in Markdown, without the first third, in which pools and caches fill."""
    rows = rows[len(rows) // 3 :]
    seconds = np.array([row["seconds"] for row in rows])
    kinds = [line["event"] for line in log]
    lines = [
        f"{seconds[-1] / 60:.0f} minutes: {max(line['step'] for line in log)} steps, "
        f"{kinds.count('evaluation')} evaluations, {kinds.count('checkpoint')} checkpoints "
        f"written, {len(kept)} kept; ended by SIGTERM.",
        "",
        "| | median | lowest | highest | change per hour |",
        "|---|---|---|---|---|",
    ]
    for name, label in (
        ("own_mb", "memory of its own, MB"), ("files_mb", "mapped files, MB"),
        ("files", "open files"), ("threads", "threads"),
    ):  # fmt: skip
        values = np.array([row[name] for row in rows])
        rate, error = slope(seconds, values)
        lines.append(
            f"| {label} | {np.median(values):.0f} | {values.min():.0f} | {values.max():.0f} | "
            f"{rate:+.1f} ± {error:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
