"""Lines of code that a task takes in this project and in others: the table in docs/library.md.

    python -m benchmarks.lines.count

`ours/` and a folder for each peer hold one file per task, as short as the documentation of that
library writes it. A test runs ours. The arrays that they use are given: `images`, uint8 in the
layout of the library or, for the tasks that convert them, `[N, H, W, 3]`; `x`, `y`, `xv` and `yv`
to train and validate on; `classes`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARIES = {
    "ours": "alexnet_jax", "timm": "timm", "torchvision": "torchvision", "keras": "Keras"
}  # fmt: skip
TASKS = {
    "forward": "a new network and its logits",
    "predict": "class names and probabilities of uint8 arrays",
    "features": "the last hidden layer",
    "kernels": "the kernels of the first layer",
    "train": "train and validate on arrays",
    "optimizer": "the same with Adam",
    "loop": "a training loop of your own",
    "gradient": "gradient of a class by the pixels",
}


def lines(text: str) -> int:
    """Lines that are neither blank, nor comments, nor imports."""
    kept = [line.strip() for line in text.splitlines()]
    return sum(not line.startswith(("#", "import ", "from ")) for line in kept if line)


def table() -> str:
    """The table in Markdown."""
    rows = [f"| task | {' | '.join(LIBRARIES.values())} |", "|---|" + "--:|" * len(LIBRARIES)]
    for task, meaning in TASKS.items():
        counts = [lines((FOLDER / name / f"{task}.py").read_text()) for name in LIBRARIES]
        rows.append(f"| {meaning} | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
