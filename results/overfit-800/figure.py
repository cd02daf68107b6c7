"""Draws figure.png from the metrics.jsonl of each preset beside this file.

python results/overfit-800/figure.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

PRESETS = ("source", "paper", "article", "caffe")
STEPS_PER_EPOCH = 6  # 800 photographs, batches of 128


def main() -> None:
    """Loss and training error against epochs, one line a preset that has been run."""
    here = Path(__file__).parent
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for preset in PRESETS:
        path = here / preset / "metrics.jsonl"
        if not path.exists():
            continue
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [line for line in lines if line["split"] == "train" and "learning_rate" in line]
        whole = len(steps) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
        for axis, name in ((left, "loss"), (right, "top1_error")):
            values = np.array([line[name] for line in steps][:whole])
            means = values.reshape(-1, STEPS_PER_EPOCH).mean(1)
            axis.plot(np.arange(1, len(means) + 1), means, label=preset)
        tests = [line for line in lines if line["split"] == "train" and "num_examples" in line]
        right.plot(
            [line["epoch"] for line in tests],
            [line["top1_error"] for line in tests],
            "o",
            color=right.lines[-1].get_color(),
            markersize=4,
        )
    left.axhline(np.log(1000), color="grey", linewidth=0.8, linestyle=":")
    left.annotate("ln 1000", (50, np.log(1000)), textcoords="offset points", xytext=(0, 4))
    left.set(xlabel="epoch", ylabel="training loss", title="Loss on random crops, with dropout")
    right.set(
        xlabel="epoch",
        ylabel="top-1 error",
        title="Training error, the same; dots: without either",
        ylim=(0, 1.02),
    )
    left.legend()
    figure.savefig(here / "figure.png", dpi=120)


if __name__ == "__main__":
    main()
