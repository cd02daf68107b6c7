"""Every field of a configuration, declared once: here, or in the operation that it belongs to.

From these declarations come the defaults, every check of a single value, the suggestions for
mistyped names, the completion of older files, `python -m alexnet_jax fields` and docs/fields.md.
Rules that involve several fields are in `rules`; the rows of the network's layers are declared here
and filled in by `networks`.
"""

import dataclasses
import difflib
import math
import operator
from collections.abc import Collection, Iterator
from typing import Any, Literal, cast

from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError
from alexnet_jax.registry import ACTIVATIONS, METRICS, OPERATIONS, OPTIMIZERS, SCHEDULES

IMAGENET_STDEVS = (19.72083305, 37.09388853, 121.78006099)
"""Standard deviations of ImageNet's RGB values along their principal components, in grey levels
(0-255), ascending. `color_pca` of cuda-convnet2's make-data/input_meta."""

IMAGENET_EIGENVECTORS = (
    (0.41795513, -0.71257945, -0.56351045),
    (-0.81698062, -0.02354167, -0.5761844),
    (0.39731118, 0.70119634, -0.59200296),
)
"""Those components as columns; rows are R, G, B. The same file."""

_MOST = 2**40
"""The largest whole number of any field."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: its value where nobody says otherwise; its type is the type of the field.
      help: one sentence.
      low: the smallest value allowed.
      high: the largest value allowed.
      above: a bound that the value must exceed.
      below: a bound that the value must stay under.
      choices: the words it may be, or that its items may be; a `Registry` is read when it is
        needed.
      items: the type of the items, where it is a tuple.
      shape: the shape of its items, where it is a tuple of a fixed number of them.
      optional: whether it may be None.
      since: the version that brought it.
      before: what runs of earlier versions did, if that is not the default: a value, or the path
        of the field whose value it takes.
      resume: what a run that resumes in a workdir may do with it. `fixed`: it keeps the value that
        its weights were trained with; so does a field whose declaration does not say. `onward`:
        another value holds for the steps from there on, if there are any. `free`: it decides where
        a run is computed and what is shown of it, not what comes out but for rounding.
    """

    default: Any
    help: str
    _: dataclasses.KW_ONLY
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Collection[Any] = ()
    items: type = float
    shape: tuple[int, ...] | None = None
    optional: bool = False
    since: str = "0.1.0"
    before: Any = None
    resume: Literal["fixed", "onward", "free"] = "fixed"

    @property
    def kind(self) -> type[Any]:
        """The type of its values."""
        return type(self.default)  # pyright: ignore[reportUnknownVariableType]

    def range(self) -> str:
        """The values allowed, in words."""
        if self.choices:
            words = ", ".join(map(str, self.choices))
            return f"{self._items()}: {words}" if self.kind is tuple else words
        if isinstance(self.default, bool):
            return "True, False"
        bounds = (
            ("at least", self.low), ("more than", self.above), ("at most", self.high),
            ("less than", self.below),
        )  # fmt: skip
        text = ", ".join(f"{words} {bound:,}" for words, bound in bounds if bound is not None)
        kinds: dict[type, str] = {
            int: "whole number",
            float: "number",
            str: "text",
            tuple: self._items(),
        }
        kind = kinds.get(self.kind, "number or None")
        return f"{kind}, {text}" if text else kind

    def _items(self) -> str:
        """The items of a tuple, in words."""
        kind = {int: "whole numbers", float: "numbers", str: "names"}[self.items]
        return f"{' x '.join(map(str, self.shape))} {kind}" if self.shape else f"tuple of {kind}"

    def check(self, path: str, value: Any) -> None:
        """Checks one value.

        Raises:
          UsageError: it is not allowed; one line that names the field and what is.
        """
        where = f"config.{path} = {value!r}"
        kind = self.kind
        absent = self.optional and value is None
        if not absent and not _is(value, float if self.optional else kind):
            name = {int: "a whole number", float: "a number", bool: "True or False"}.get(kind)
            raise UsageError(f"{where}: give {name or 'a ' + kind.__name__}")
        if self.kind is tuple:
            shape = (len(cast(tuple[Any, ...], value)),) if self.shape is None else self.shape
            if _shape(value) != shape or not all(_is(item, self.items) for item in _items(value)):
                raise UsageError(f"{where}: give {'' if self.shape else 'a '}{self._items()}")
        for number in _numbers(value):
            if not math.isfinite(number):
                raise UsageError(f"{where}: give a finite number")
            if isinstance(number, int) and abs(number) > _MOST:
                raise UsageError(f"{where}: must be at most {_MOST}")
        for item in _items(value) if self.choices else ():
            if item not in self.choices:
                close = difflib.get_close_matches(str(item), map(str, self.choices), n=1)
                words = f"use one of {', '.join(map(str, self.choices))}"
                raise UsageError(f"{where}: {f'did you mean {close[0]!r}?' if close else words}")
        for words, bound, broken in (
            ("at least", self.low, operator.lt),
            ("more than", self.above, operator.le),
            ("at most", self.high, operator.gt),
            ("less than", self.below, operator.ge),
        ):
            # Bounds of a tuple hold for each of its numbers.
            if bound is not None and any(broken(number, bound) for number in _numbers(value)):
                raise UsageError(f"{where}: must be {words} {bound}")


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a type; a whole number is also a number, but True is neither."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _shape(value: object) -> tuple[int, ...] | None:
    """The shape of nested tuples, or None where they differ in length."""
    if not isinstance(value, tuple):
        return ()
    items = cast(tuple[object, ...], value)
    shapes = {_shape(item) for item in items} or {()}
    inner = shapes.pop()
    return None if shapes or inner is None else (len(items), *inner)


def _items(value: Any) -> Iterator[Any]:
    """The items of nested tuples; of anything else, itself."""
    if isinstance(value, tuple):
        for item in cast(tuple[Any, ...], value):
            yield from _items(item)
    else:
        yield value


def _numbers(value: Any) -> Iterator[float]:
    return (item for item in _items(value) if isinstance(item, (int, float)))


FIELDS: dict[str, Field] = {
    "seed": Field(
        0, "Seed of the initial weights, the order of examples, augmentation and dropout.",
        low=0, high=2**32 - 1,
    ),
    "placement": Field(
        "auto",
        "Where the towers run: vmap (one device), pmap (one device per tower), mesh (2 x N); auto "
        "chooses by the devices found.",
        choices=("auto", "vmap", "pmap", "mesh"), resume="free",
    ),
    "batch_size": Field(
        128,
        "Images per step, over all devices and processes; of your own images, no more than there "
        "are to train on.",
        low=1, high=2**20,
    ),
    "accumulate_steps": Field(
        1, "Parts in which each device works through its share of a batch, to save memory.",
        low=1, resume="free",
    ),
    "gradient_sum_dtype": Field(
        "float32",
        "Type in which data-parallel groups send their gradients to be summed. bfloat16 is half as "
        "many bytes, rounded; without such groups (vmap, pmap) nothing is sent.",
        choices=("float32", "bfloat16"), since="0.2.0",
    ),
    "num_epochs": Field(
        90.0, "Length of the run in passes over the training images.",
        low=0, high=10**6, resume="onward",
    ),
    "stop_at_error": Field(
        0.0,
        "Ends the run once the top-1 error of the last of evaluate.splits is at most this fraction;"
        " 0: never.",
        low=0, resume="onward",
    ),
    "log_every_steps": Field(20, "Steps per line of the training log.", low=1, resume="free"),
    "checkpoint_every_steps": Field(1000, "Steps between checkpoints.", low=1, resume="free"),
    "warn_stuck_after_steps": Field(
        5000, "Warns if the loss is still that of guessing after this many steps, or after a fifth"
        " of a shorter run; 0: never.",
        low=0, resume="free",
    ),
    "warn_slow_step_after_seconds": Field(
        600, "Writes the stacks of all threads if one step takes longer; 0: never.",
        low=0, resume="free",
    ),
    "max_not_finite_steps": Field(
        5, "Consecutive steps with NaN or infinity, which are not applied, before the run ends.",
        low=1, resume="onward",
    ),
    "keep_checkpoints": Field(
        2, "Latest checkpoints that are kept, besides the best one.", low=1, resume="free",
    ),
    "init_from": Field(
        "",
        "A workdir, a .safetensors or .onnx file, or the name of a network, with the weights that "
        "the run starts from.",
        since="0.2.0",
    ),
    "freeze": Field(
        (), "Names of layers whose weights are not trained.", items=str, since="0.2.0",
    ),
    "imports": Field(
        (),
        "Modules to import first, which register operations, optimizers, sources or metrics of "
        "your own.",
        items=str, since="0.2.0", resume="free",
    ),
    "tensorboard": Field(
        False, "Writes TensorBoard event files into the workdir.", since="0.2.0", resume="free",
    ),
    "wandb_project": Field(
        "", "Project of Weights & Biases to which the log is also sent.",
        since="0.2.0", resume="free",
    ),
    "distributed.enabled": Field(
        False,
        "Several processes, one per host or device, each started with the same command; on Slurm, "
        "Kubernetes and Cloud TPU this is the only field to set.",
        resume="free",
    ),
    "distributed.coordinator": Field("", "HOST:PORT of process 0.", resume="free"),
    "distributed.process_count": Field(
        0, "Number of processes; 0: from the cluster.", low=0, resume="free",
    ),
    "distributed.process_id": Field(
        -1, "Number of this process, from 0; -1: from the cluster.", low=-1, resume="free",
    ),
    "distributed.start_timeout_seconds": Field(
        300, "How long to wait for the other processes at the start.", low=1, resume="free",
    ),
    "distributed.lost_after_seconds": Field(
        100, "A process that is silent for this long ends the run.", low=1, resume="free",
    ),
    "model.num_classes": Field(1000, "Number of classes.", low=2, high=10**6),
    "model.towers": Field(
        2, "Equal parts of the network, which exchange activations at a few layers.",
        low=1, high=64,
    ),
    "model.width": Field(
        1.0, "Multiplies the features of every layer but the classifier.", above=0, high=64,
    ),
    "model.activation": Field(
        "relu", "The activation function.", choices=ACTIVATIONS,
    ),
    "model.compute_dtype": Field(
        "float32",
        "Type of activations and products; parameters, normalization and loss stay float32.",
        choices=("float32", "bfloat16", "float64"),
    ),
    "model.precision": Field(
        "highest",
        "How float32 products are computed. highest: in float32; high: TensorFloat-32 on GPUs that "
        "have it, three bfloat16 passes on TPU; default: the same on GPU, one pass on TPU.",
        choices=("highest", "high", "default"), since="0.2.0", before="default",
    ),
    "model.winograd": Field(
        True,
        "Whether convolutions on CPU are computed by Winograd's algorithm where that is faster: "
        "with fewer products, and rounding errors that are about ten times as large.",
        since="0.2.0", before=False, resume="free",
    ),
    "model.layer_order": Field((), "Names of the layers, first to last.", items=str),
    "data.source": Field(
        "tfds:imagenet2012",
        "Where images come from: digits, tfds:NAME[:VERSION], folder:PATH, prepared:PATH, or a "
        "source of your own.",
        resume="onward",
    ),
    "data.train_split": Field("train", "The split to train on."),
    "data.test_split": Field("validation", "The split to test on."),
    "data.validation_split": Field(
        "",
        "The split that steers a run (plateau, best checkpoint, stop_at_error); empty: a share of "
        "the training images, which are then not trained on.",
        since="0.2.0", before="data.test_split",
    ),
    "data.validation_fraction": Field(
        0.1,
        "That share; 0: no validation, all images are trained on.",
        low=0, below=1, since="0.2.0", before=0.0,
    ),
    "data.test_fraction": Field(
        0.2, "Share of each class that is tested on, for a folder without splits.",
        above=0, below=1, since="0.2.0",
    ),
    "data.image_size": Field(
        256, "Side in pixels of the square that every image becomes.", low=1, high=2**13,
    ),
    "data.resize": Field(
        "short_side",
        "short_side: scales the short side and cuts the centre square (2012); stretch: scales both "
        "sides (Caffe).",
        choices=("short_side", "stretch"),
    ),
    "data.shrink": Field(
        "area",
        "Interpolation of images that become smaller: area (2012), bilinear (Caffe) or triangle "
        "(antialiased).",
        choices=("area", "bilinear", "triangle"),
    ),
    "data.max_pixels": Field(
        100_000_000, "Largest image that is decoded, in pixels.", low=1, high=2**40,
        resume="onward",
    ),
    "data.max_unreadable": Field(
        0, "Unreadable images that are replaced by the next in order; one more is an error.",
        low=0, resume="onward",
    ),
    "data.pad": Field(
        0, "Pixels mirrored around a training image before its crop.", low=0, high=2**13,
    ),
    "data.crop_size": Field(
        224, "Side in pixels of the crop that the network sees.", low=1, high=2**13,
    ),
    "data.random_crop": Field(True, "Whether training crops are drawn at random."),
    "data.random_flip": Field(True, "Whether training crops are mirrored at random."),
    "data.mean": Field(
        "channel",
        "What is subtracted: channel_mean, or the mean image of the training split.",
        choices=("channel", "image"),
    ),
    "data.channel_mean": Field(
        (123.68, 116.78, 103.94), "Mean of R, G, B in grey levels (0-255).", shape=(3,),
    ),
    "data.scale": Field(
        1.0, "Multiplies pixels after the mean is subtracted; 1 keeps grey levels, as in 2012.",
        above=0,
    ),
    "data.colour.rule": Field(
        "none", "PCA colour noise: none, as the 2012 source does it, or as the paper words it.",
        choices=("none", "source", "paper"),
    ),
    "data.colour.until_epoch": Field(
        0.0, "Epoch from which on there is no colour noise; 0: always.", low=0,
    ),
    "data.colour.stdevs": Field(
        IMAGENET_STDEVS, "Deviations of colours along their principal components, in grey levels.",
        shape=(3,),
    ),
    "data.colour.eigenvectors": Field(
        IMAGENET_EIGENVECTORS, "Those components as columns; rows are R, G, B.", shape=(3, 3),
    ),
    "optimizer.rule": Field(
        "sgd_2012",
        "The update rule: momentum as in 2012, Adam, AdamW, or one that was given in Python.",
        choices=OPTIMIZERS, since="0.2.0",
    ),
    "optimizer.learning_rate": Field(
        0.01, "Learning rate of the weights at the start.", above=0, resume="onward",
    ),
    "optimizer.rate_scaling": Field(
        "none", "How the rate grows with batch_size / rate_scaling_batch.",
        choices=("none", "linear", "sqrt"), resume="onward",
    ),
    "optimizer.rate_scaling_batch": Field(
        128, "Batch size for which learning_rate is given.", low=1, resume="onward",
    ),
    "optimizer.warmup_epochs": Field(
        0.0, "Epochs over which the rates rise from zero.", low=0, resume="onward",
    ),
    "optimizer.trust_coefficient": Field(
        0.0, "Trust coefficient of LARS (sgd_2012); 0: plain momentum.", low=0, resume="onward",
    ),
    "optimizer.momentum": Field(
        0.9, "Momentum; of Adam, the decay of the first moment.", low=0, resume="onward",
    ),
    "optimizer.weight_decay": Field(
        5e-4, "Weight decay of layers that have none of their own.", low=0, resume="onward",
    ),
    "optimizer.decay_biases": Field(False, "Whether biases decay too.", resume="onward"),
    "optimizer.bias_rate_multiplier": Field(
        1.0, "Rate of the biases as a multiple of the weights'.", low=0, resume="onward",
    ),
    "optimizer.biases_follow_schedule": Field(
        True, "Whether the rate of the biases follows the schedule.", resume="onward",
    ),
    "optimizer.schedule": Field(
        "steps", "How the rate falls.",
        choices=SCHEDULES, resume="onward",
    ),
    "optimizer.drop_factor": Field(
        0.1, "Factor of each drop (steps, plateau).", above=0, resume="onward",
    ),
    "optimizer.drop_epochs": Field(
        (30.0, 60.0, 80.0), "Epochs of the drops (steps).", low=0, resume="onward",
    ),
    "optimizer.conv1_drop_epochs": Field(
        (), "Epochs of the drops of conv1's weights (steps); empty: with the rest.",
        low=0, resume="onward",
    ),
    "optimizer.conv1_freeze_epoch": Field(
        0.0, "Epoch from which on conv1's weights stay as they are; 0: never.", low=0,
        resume="onward",
    ),
    "optimizer.polynomial_power": Field(
        2.0, "Power of the remaining share of the run (polynomial).", above=0, resume="onward",
    ),
    "optimizer.exponential_factor": Field(
        250.0, "First rate divided by the last (exponential_steps).", above=0, resume="onward",
    ),
    "optimizer.exponential_steps": Field(
        4, "Number of rates (exponential_steps).", low=1, high=10**4, resume="onward",
    ),
    "optimizer.bias_exponential_factor": Field(
        10.0, "The same factor for biases.", above=0, resume="onward",
    ),
    "optimizer.bias_exponential_steps": Field(
        2, "The same number for biases.", low=1, high=10**4, resume="onward",
    ),
    "optimizer.plateau_patience": Field(
        3, "Evaluations without a lower error before a drop (plateau).", low=1, resume="onward",
    ),
    "optimizer.plateau_drops": Field(
        3, "Largest number of drops (plateau).", low=0, resume="onward",
    ),
    "evaluate.every_epochs": Field(1.0, "Epochs between evaluations.", above=0, resume="onward"),
    "evaluate.batch_size": Field(
        256, "Images per evaluation step; ten views count as ten.", low=1, high=2**20,
        resume="free",
    ),
    "evaluate.splits": Field(
        ("validation",),
        "Splits evaluated during training: train, validation, both or none; the last one steers "
        "plateau, best checkpoint and stop_at_error. The test split is evaluated once, at the end.",
        items=str, resume="onward",
    ),
    "evaluate.metrics": Field(
        (), "Metrics that are evaluated besides the loss and the top-1 and top-5 errors.",
        items=str, choices=METRICS, since="0.2.0", resume="onward",
    ),
    "evaluate.final_views": Field(
        1, "Views per image in the test after training: the centre crop; 9 or 10 adds the others.",
        choices=(1, 9, 10), resume="onward",
    ),
}  # fmt: skip

KINDS = ("conv", "local", "dense")
EXCHANGES = ("none", "inputs", "partial_sums")

LAYER_FIELDS: dict[str, Field] = {
    "kind": Field("conv", "conv, local (unshared kernels) or dense.", choices=KINDS),
    "features": Field(1, "Outputs of all towers together, before model.width.", low=1),
    "kernel": Field(0, "Side of the window in pixels; 0 in a dense layer.", low=0),
    "stride": Field(1, "Pixels between two applications.", low=1),
    "padding": Field(
        (0, 0), "Zeros before and after, in both directions.", low=0, items=int, shape=(2,),
    ),
    "exchange": Field(
        "none",
        "What the towers send: none, inputs (each gathers the others' outputs) or partial_sums "
        "(each multiplies its own inputs, and the products are summed).",
        choices=EXCHANGES,
    ),
    "init_std": Field(0.01, "Standard deviation of the initial Gaussian weights.", low=0),
    "bias": Field(0.0, "Initial bias."),
    "then": Field(
        ("activation",), "Operations after the layer, in order.", items=str, choices=OPERATIONS,
    ),
    "weight_decay": Field(
        None, "Weight decay of this layer; None: optimizer.weight_decay.",
        low=0, optional=True, resume="onward",
    ),
}  # fmt: skip
"""The fields of `model.layers.NAME`."""


def declared() -> dict[str, Field]:
    """Every field of a configuration but those of its layers, by group.

    They are `FIELDS` and those of the operations that are registered now.
    """
    of_operations = {
        f"model.{op.group}.{name}": field
        for op in OPERATIONS.values()
        for name, field in op.fields.items()
    }
    groups = list(dict.fromkeys(path.partition(".")[0] for path in FIELDS))
    found = (FIELDS | of_operations).items()
    return dict(sorted(found, key=lambda field: groups.index(field[0].partition(".")[0])))


def field_of(path: str, known: dict[str, Field] | None = None) -> Field | None:
    """The declaration of a field, or None.

    Args:
      path: such as `model.layers.conv1.bias`.
      known: what `declared` returned, if it is at hand.
    """
    known = declared() if known is None else known
    if path in known:
        return known[path]
    head, _, name = path.rpartition(".")
    is_layer = head.startswith("model.layers.") and head.count(".") == 2
    return LAYER_FIELDS.get(name) if is_layer else None


def suggestion(path: str, known: Iterator[str] | list[str] | None = None) -> str:
    """`; did you mean ...?` for a path that no field has, or nothing.

    Args:
      path: as it was typed, such as `learning_rate` or `optimizer.learning_rat`.
      known: the paths there are; without them those of the default.
    """
    paths = list(declared() if known is None else known)
    name = path.rpartition(".")[2]
    same = [p for p in paths if p.rpartition(".")[2] == name]
    names = {p.rpartition(".")[2]: p for p in reversed(paths)}
    close = (
        same
        or difflib.get_close_matches(path, paths, n=1, cutoff=0.8)
        or [names[n] for n in difflib.get_close_matches(name, list(names), n=1)]
    )
    return f"; did you mean {close[0]}?" if close else ""


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is not a group, as (`model.pool.window`, value).

    Not by `flax.traverse_util.flatten_dict`, which would import JAX for every `--help`.
    """
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_fields(config: ConfigDict) -> None:
    """Checks that every field is there and no other, and each value by itself.

    Raises:
      UsageError: one line that names the first field that is wrong.
    """
    found = dict(leaves(config))
    rows = config.get("model", {}).get("layers", {})
    known = declared()
    wanted = [*known, *(f"model.layers.{row}.{name}" for row in rows for name in LAYER_FIELDS)]
    for path in found:
        if field_of(path, known) is None:
            raise UsageError(f"config.{path}: no such field{suggestion(path)}{_guest(path, known)}")
    for path in wanted:
        if path not in found:
            raise UsageError(f"config.{path} is missing")
    # Groups last: what refers to another field has its value.
    for path in sorted(found, key=lambda path: path.count(".")):
        field = field_of(path, known)
        assert field is not None
        field.check(path, found[path])


def _guest(path: str, known: Collection[str]) -> str:
    """What to do about a field of a whole group that nobody declares, or nothing."""
    group = path.rpartition(".")[0] + "."
    if not path.startswith("model.") or any(name.startswith(group) for name in known):
        return ""
    return "; config.imports names the modules with operations of your own"


def defaults() -> ConfigDict:
    """Every declared field with its default, as groups; a network has no layers yet."""
    config = ConfigDict()
    for path, field in declared().items():
        *groups, name = path.split(".")
        place = config
        for group in groups:
            if group not in place:
                place[group] = ConfigDict()
            place = place[group]
        place[name] = field.default
    config.model.layers = ConfigDict()
    return config
