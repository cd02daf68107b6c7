"""Writes README.md: what the paper and the article claim, beside what was measured here.

    python results/claims.py

Every number comes from the logs in this folder, and the verdict on a difference from its test.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import paths
from alexnet_jax.analysis import comparison, study
from alexnet_jax.analysis.comparison import Difference
from alexnet_jax.config import presets, table

HERE = Path(__file__).parent
PHOTOGRAPHS = "python -m alexnet_jax study --config=studies/imagenette --workdir=runs/imagenette"
RATES = (
    "python -m alexnet_jax study --config=studies/imagenette:rates --workdir=runs/imagenette-rates"
)
AGREES, DISAGREES = "agrees", "disagrees"
UNCLEAR, IMAGENET = "cannot tell at this size", "needs ImageNet"
NOT_DONE = "not measured yet"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured about a claim: the number, on what, and what follows."""

    here: str
    on: str
    verdict: str
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
      text: what is claimed.
      said: the figure, and where: a section of the paper, or the article.
      measured: what was measured about it.
    """

    text: str
    said: str
    measured: Measured


def verdict(found: Difference, holm: float | None, expected_sign: int) -> str:
    """Whether a difference has the sign that is claimed, as far as its test can tell."""
    judged = AGREES if found.mean * expected_sign > 0 else DISAGREES
    if holm is not None and holm < comparison.SIGNIFICANT:
        return judged
    if found.p is not None and found.p < comparison.SIGNIFICANT:
        return f"{UNCLEAR}; {judged} without Holm's correction"
    return UNCLEAR


def interval(found: Difference) -> str:
    """A difference in points of error, with its 95 % interval."""
    text = f"{found.mean:+.2f}"
    return text if found.low is None else f"{text} [{found.low:+.2f}, {found.high:+.2f}]"


@functools.cache
def photographs() -> tuple[ConfigDict, Path]:
    """The study of the parts of the network on photographs."""
    folder = HERE / "imagenette" / "parts"
    return study.read(folder), folder


def on_photographs(count: int) -> str:
    """Of what the study on photographs is, and how many pairs of runs there are."""
    return f"ten classes of photographs, half the width, {count} seeds"


def part(variant: str, expected_sign: int, measure: str = "test_error") -> Measured:
    """The difference that a variant makes on photographs, in points of a measure."""
    config, folder = photographs()
    by_name = {row.name: row for row in comparison.rows(config, folder, measure)}
    row = by_name[variant]
    if row.difference is None:
        reasons = "; ".join(sorted(set(row.missing.values())))
        return Measured(reasons, on_photographs(0), NOT_DONE, PHOTOGRAPHS)
    return Measured(
        interval(row.difference),
        on_photographs(row.difference.seeds),
        verdict(row.difference, row.holm, expected_sign),
        PHOTOGRAPHS,
    )


def sigmoid() -> Measured:
    """Whether the network trains with sigmoid at any rate."""
    folder = HERE / "imagenette" / "rates"
    config = study.read(folder)
    rows = [x for x in comparison.rows(config, folder) if x.name.startswith("sigmoid")]
    stuck = sum(not row.values for row in rows)
    return Measured(
        f"at {stuck} of {len(rows)} learning rates it did not learn at all",
        "ten classes of photographs, half the width, 1 seed",
        AGREES if stuck == len(rows) else UNCLEAR,
        RATES,
    )


def figure1() -> Measured:
    """How many times as many epochs tanh takes to 25 % training error."""
    folder = HERE / "figure1"
    config = study.read(folder)
    row = next(x for x in comparison.table(config, folder).main if x.name == "tanh")
    found = row.difference
    assert found is not None and found.low is not None and found.high is not None
    # Of times, the comparison is about logarithms.
    ratio, low, high = (math.exp(x) for x in (found.mean, found.low, found.high))
    return Measured(
        f"{ratio:.1f} times [{low:.1f}, {high:.1f}]",
        f"CIFAR-10, `19pct` of cuda-convnet, {found.seeds} seeds",
        verdict(found, row.holm, 1),
        "python -m alexnet_jax study --config=studies/figure1_relu_vs_tanh --workdir=runs/figure1",
    )


def ten_views() -> Measured:
    """The error over ten views beside that of the centre, of the same runs."""
    config, folder = photographs()
    ten, one = (
        next(row for row in comparison.rows(config, folder, measure) if row.name == "base").values
        for measure in ("test_error_10_views", "test_error")
    )
    found = comparison.paired_difference(ten, one)
    assert found is not None
    return Measured(
        interval(found), on_photographs(found.seeds), verdict(found, found.p, -1), PHOTOGRAPHS
    )


def overfitting(variant: str) -> Measured:
    """Training and test error of a variant beside the base."""
    config, folder = photographs()

    def errors(name: str) -> str:
        train, test = (
            next(row for row in comparison.rows(config, folder, measure) if row.name == name).mean
            for measure in ("train_error", "test_error")
        )
        return f"training {train:.1f} %, test {test:.1f} %"

    test = part(variant, 1)
    return dataclasses.replace(
        test,
        here=f"{errors(variant)}; with it {errors('base')}: {test.here} on the test set",
    )


def colours() -> Measured:
    """The share of colour in the first kernels of the two towers, in all runs on photographs."""
    config, folder = photographs()
    most, least = (
        {row.name: row for row in comparison.rows(config, folder, measure)}["base"].mean
        for measure in ("most_colour", "least_colour")
    )
    shares = [
        json.loads(path.read_text())["colour_share"]
        for path in sorted((HERE / "imagenette").rglob("result.json"))
    ]
    pairs = [share for share in shares if len(share) == 2]
    ratios = [max(pair) / min(pair) for pair in pairs]
    full = json.loads((HERE / "imagenette" / "full" / "result.json").read_text())["colour_share"]
    return Measured(
        f"{most:.0f} and {least:.0f} % of the kernels' energy is colour, in the full network "
        f"{100 * max(full):.0f} and {100 * min(full):.0f} %; in {len(pairs)} runs of two towers, "
        f"{sum(ratio >= 2 for ratio in ratios)} have twice as much in one as in the other",
        "ten classes of photographs; all runs",
        IMAGENET if any(ratio >= 2 for ratio in ratios) else f"{DISAGREES} at this size",
        PHOTOGRAPHS,
    )


def trained(folder: str, on: str, command: str, said: float | None = None) -> Measured:
    """The test error of one run, which agrees with what is said, in percent, within a point."""
    result = json.loads((HERE / folder / "result.json").read_text())["test"]
    error = 100 * result["top1_error"]
    text = f"{error:.2f} %"
    if (views := result.get("top1_error_10_views")) is not None:
        text += f", over ten views {100 * views:.2f} %"
    judged = "" if said is None else AGREES if abs(error - said) <= 1 else DISAGREES
    return Measured(text, on, judged, f"python -m alexnet_jax train {command}")


def parameters() -> Measured:
    """The number of parameters of the network of the article."""
    config = presets.get("article")
    count = sum(row.parameters for row in table.count(config.model, config.data.crop_size))
    return Measured(
        f"{count:,}",
        "the table of layers",
        AGREES if round(count / 1e7) == 6 else DISAGREES,
        "python -m alexnet_jax inspect --config=imagenet:article",
    )


def elsewhere(judged: str = IMAGENET, command: str = "") -> Measured:
    """Nothing has been measured."""
    return Measured("", "", judged, command)


def claims() -> list[Claim]:
    """All claims, in the order of the paper."""
    return [
        Claim(
            "ReLU reaches 25 % training error sooner than tanh", "6 times; section 3.1", figure1()
        ),
        Claim(
            "ReLU converges much sooner than tanh: after 30 epochs tanh has the higher error",
            "article, 1; section 3.1",
            part("tanh", 1),
        ),
        Claim("With sigmoid the network is hard to train", "article, 1", sigmoid()),
        Claim(
            "One tower with half of the kernels is worse than two towers",
            "+1.7; section 3.2",
            part("one-tower-half", 1),
        ),
        Claim(
            "Towers that exchange nothing are worse",
            "+1.2; log of the source's run 150",
            part("no-exchange", 1),
        ),
        Claim(
            "Two towers train slightly faster than one GPU with half of the kernels",
            "section 3.2",
            elsewhere("needs two GPUs"),
        ),
        Claim("Without LRN the error is higher", "+1.4; section 3.3", part("lrn-off", 1)),
        Claim(
            "LRN lowers the error of a CIFAR-10 network",
            "13 to 11 %; section 3.3",
            elsewhere(
                NOT_DONE,
                "python -m alexnet_jax study --config=studies/lrn_cifar10 --workdir=runs/lrn",
            ),
        ),
        Claim(
            "Pooling without overlap (2 x 2 / 2) is worse",
            "+0.4; section 3.4",
            part("pool-2-2", 1),
        ),
        Claim(
            "With overlap it is slightly harder to overfit: without, the training error is lower",
            "section 3.4",
            part("pool-2-2", -1, "train_error"),
        ),
        Claim(
            "60 million parameters", "section 3.5", parameters()
        ),
        Claim(
            "Without crops and flips the network overfits substantially",
            "section 4.1",
            overfitting("crop-and-flip-off"),
        ),
        Claim(
            "Colour noise lowers the error by over one point: without it the error is higher",
            "+1; section 4.1",
            part("colour-noise-off", 1),
        ),
        Claim(
            "The mean over ten views has a lower error than the centre",
            "-1.5 (39.0 to 37.5 %); section 6",
            ten_views(),
        ),
        Claim(
            "Without dropout the network overfits substantially",
            "section 4.2",
            overfitting("dropout-off"),
        ),
        Claim(
            "Dropout about doubles the number of iterations",
            "section 4.2; article, 5",
            elsewhere(NOT_DONE),
        ),
        Claim(
            "Weight decay also lowers the training error", "section 5", elsewhere(NOT_DONE)
        ),
        Claim(
            "The kernels of one tower become colourless and those of the other colourful, in every "
            "run",
            "section 6.1",
            colours(),
        ),
        Claim("Without any one of the middle layers: 2 points worse", "section 7", elsewhere()),
        Claim(
            "ImageNet 2012, validation images, ten views: top-1 and top-5 error",
            "40.7 and 18.2 %; table 2",
            elsewhere(
                command="python -m alexnet_jax train --config=imagenet:source --workdir=runs/source"
            ),
        ),
        Claim(
            "ImageNet 2010, test images, ten views: top-1 and top-5 error",
            "37.5 and 17.0 %; table 1",
            elsewhere(),
        ),
        Claim("Five networks together: top-5 error", "16.4 %; table 2", elsewhere()),
        Claim(
            "`80sec` of cuda-convnet on CIFAR-10: test error",
            "26 %; its comments",
            trained(
                "cifar10-2012/80sec", "CIFAR-10, 1 seed",
                "--config=cifar10_2012:80sec --workdir=runs/80sec", said=26,
            ),
        ),
        Claim(
            "`18pct` of cuda-convnet on CIFAR-10: test error",
            "18 %; its comments",
            trained(
                "cifar10-2012/18pct", "CIFAR-10, 1 seed",
                "--config=cifar10_2012:18pct --workdir=runs/18pct", said=18,
            ),
        ),
        Claim(
            "(no claim: the full network of two towers on photographs)",
            "",
            trained(
                "imagenette/full", "ten classes of photographs, full width, 1 seed",
                "--config=imagenette:full --workdir=runs/imagenette-full",
            ),
        ),
        Claim(
            "(no claim: the same with the settings of the paper, as it states them)",
            "",
            trained(
                "imagenette/paper", "ten classes of photographs, full width, 1 seed",
                "--config=imagenette:paper --workdir=runs/imagenette-paper",
            ),
        ),
    ]  # fmt: skip


HEAD = """# Results

What the paper (Krizhevsky, Sutskever and Hinton, 2012), the article "大话CNN经典模型：AlexNet" and
the original source claim, beside what was measured here. This page is written by `python
results/claims.py` from the logs in this folder.

Differences are in points of top-1 error, from the same network with the part, over runs of equal
seeds; in brackets is the 95 % interval of the mean difference. A difference agrees or disagrees
with a claim if its paired t-test says so at 0.05, among the variants of a study after Holm's
correction for their number; otherwise this study **cannot tell**, and the page says what the test
says without that correction. The error of one run agrees if it is within a point. Where the paper
gives a figure, it was measured on ImageNet with the full network.

"""
TAIL = """
The photographs are the ten classes of Imagenette ([imagenette](imagenette)): 9,445 for training
and 2,000 for the test, which was done once, after each run. Their rates were chosen on a tenth of
the training photographs, one seed ([table](imagenette/rates/table.md)); all variants are in [this
table](imagenette/parts/table.md). The runs were made on one NVIDIA H100 with TensorFloat-32.

Other folders: [figure1](figure1/README.md), [overfit-800](overfit-800/README.md),
[cifar10](cifar10/README.md), [cifar10-2012](cifar10-2012/README.md), and
[components](components/README.md), an earlier and smaller study on CIFAR-10, kept as an example
of an undertrained network: at 51 % error the parts do not show what they do.
"""


def page() -> str:
    """The text of README.md."""
    lines = ["| claim | said | measured here | on | verdict |", "|---|---|---|---|---|"]
    commands: dict[str, list[str]] = {}
    for claim in claims():
        found = claim.measured
        judged = found.verdict and f"**{found.verdict}**"
        lines.append(f"| {claim.text} | {claim.said} | {found.here} | {found.on} | {judged} |")
        if found.command:
            commands.setdefault(found.command, []).append(claim.text)
    listed = "\n".join(commands)
    return HEAD + "\n".join(lines) + f"\n\nThe commands:\n\n```text\n{listed}\n```\n" + TAIL


if __name__ == "__main__":
    paths.write(HERE / "README.md", page())
