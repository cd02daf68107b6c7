"""The network of a configuration as tables, without running it."""

from ml_collections import ConfigDict

from alexnet_jax.config import presets, table
from alexnet_jax.config.fields import LAYER_FIELDS, declared, suggestion
from alexnet_jax.errors import UsageError

_FIXED = "; fixed for a run that is resumed"


def layer_table(config: ConfigDict) -> str:
    """Every layer with its shapes, parameters, multiply-adds per image and exchange."""
    rows = table.count(config.model, config.data.crop_size)
    columns = ("layer", "kernels", "output", "after", "parameters", "multiply-adds", "exchange")
    cells = []
    for row in rows:
        layer = row.layer
        kernels = f"{row.out_shape[-1]}"
        if layer.kind != "dense":
            kernels += f" x {layer.kernel}x{layer.kernel}x{row.in_channels}"
            kernels += f" /{layer.stride}" if layer.stride > 1 else ""
        cells.append(
            (
                layer.name,
                kernels,
                shape_text(row.out_shape),
                shape_text(row.next_shape),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                f"{row.exchanged + row.halo:,}" if row.exchanged + row.halo else "-",
            )
        )
    total = (
        "total",
        "",
        "",
        "",
        f"{sum(r.parameters for r in rows):,}",
        f"{sum(r.macs for r in rows):,}",
        f"{sum(r.exchanged + r.halo for r in rows):,}",
    )
    lines = align([columns, *cells, total], right=(4, 5, 6))
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, "-" * len(lines[0]))
    towers = f"{config.model.towers} tower{'s' if config.model.towers > 1 else ''}"
    crop = config.data.crop_size
    notes = [
        f"{towers}, input {crop} x {crop} x 3; shapes are of all towers together.",
        "exchange: elements that a tower receives from the others, per image, forward.",
    ]
    return "\n".join([*lines, "", *notes])


SHORT = {"activation": "act", "max_pool": "pool", "avg_pool": "mean pool", "lrn": "LRN"}
SHORT |= {"within_map_norm": "map norm"}


def conventions(config: ConfigDict) -> dict[str, str]:
    """What sources disagree about, as one named value each, read from the configuration."""
    model, data, optimizer = config.model, config.data, config.optimizer
    layers = [(name, model.layers[name]) for name in model.layer_order]
    maps = [(name, row) for name, row in layers if row.kind != "dense"]
    padding = " + ".join(str(n) for n in maps[0][1].padding) if maps else "0"

    def by_value(field: str) -> str:
        groups: dict[float, list[str]] = {}
        for name, row in layers:
            groups.setdefault(row[field], []).append(name.replace("conv", "c").replace("fc", "f"))
        usual = max(groups, key=lambda value: len(groups[value]))
        others = [f"{' '.join(names)}: {v:g}" for v, names in groups.items() if v != usual]
        return "; ".join([f"{usual:g}", *others])

    def order(row: ConfigDict) -> str:
        ops = [op for op in row.then if op != "lrn" or model.lrn.enabled]
        return ", ".join(SHORT.get(op, op) for op in ops)

    def epochs(values: tuple[float, ...]) -> str:
        return " ".join(f"{v:g}" for v in values) or "-"

    lrn = model.lrn
    steps = optimizer.schedule == "steps"
    places = data.image_size + 2 * data.pad - data.crop_size + 1
    schedules = {
        "steps": f"x {optimizer.drop_factor:g} at {epochs(optimizer.drop_epochs)}",
        "exponential_steps": f"{optimizer.exponential_steps} rates, in all / "
        f"{optimizer.exponential_factor:g}",
        "plateau": f"x {optimizer.drop_factor:g} on a plateau, {optimizer.plateau_drops} times",
        "polynomial": f"x (what is left) ^ {optimizer.polynomial_power:g}",
    }
    schedule = schedules.get(optimizer.schedule, optimizer.schedule)
    rate = f"{optimizer.learning_rate:g}"
    if optimizer.rate_scaling != "none":
        rate += f" x batch / {optimizer.rate_scaling_batch}"
        rate += ", root" if optimizer.rate_scaling == "sqrt" else ""
    conv1_own = steps and (optimizer.conv1_drop_epochs or optimizer.conv1_freeze_epoch)
    freeze = optimizer.conv1_freeze_epoch
    values = {
        "weights' deviation": by_value("init_std"),
        "initial biases": by_value("bias"),
        "activation": model.activation,
        **{f"after {name}": order(row) for name, row in maps if len(row.then) > 1},
        "LRN n, k, beta": f"{lrn.size}, {lrn.k:g}, {lrn.beta:g}",
        "LRN alpha": f"{lrn.alpha:g}" + (" / n" if lrn.alpha_divided_by_size else ""),
        "LRN window": "across towers" if lrn.across_towers else "inside a tower",
        "pool": f"{model.pool.window} x {model.pool.window} / {model.pool.stride}",
        "dropout": " ".join(name for name, row in layers if "dropout" in row.then) or "-",
        "dropout, training": "rescaled"
        if model.dropout.rescaled_in_training
        else f"plain, x {1 - model.dropout.rate:g} in test",
        "crop, zeros": f"{data.crop_size}, {padding}",
        "crop places": f"{places} x {places}" + (" x 2 (flips)" if data.random_flip else ""),
        "resize": f"{data.resize}, {data.shrink}".replace("_", " "),
        "mean": {"image": "per pixel", "channel": "per channel"}[data.mean],
        "colour noise": data.colour.rule
        + (f", until epoch {data.colour.until_epoch:g}" if data.colour.until_epoch else ""),
        "precision": precision(model),
        "batch": f"{config.batch_size}",
        "update rule": optimizer.rule,
        "rate": rate,
        "warm-up": f"{optimizer.warmup_epochs:g} epochs" if optimizer.warmup_epochs else "-",
        "trust ratio": f"x {optimizer.trust_coefficient:g}" if optimizer.trust_coefficient else "-",
        "rate of biases": f"x {optimizer.bias_rate_multiplier:g}"
        + ("" if optimizer.biases_follow_schedule else ", never dropped"),
        "decay of biases": "yes" if optimizer.decay_biases else "no",
        "schedule": schedule,
        "schedule of conv1": epochs(optimizer.conv1_drop_epochs)
        + (f", frozen at {freeze:g}" if freeze else "")
        if conv1_own
        else "with the rest",
        "epochs": f"{config.num_epochs:g}",
    }
    return {name: value.replace("_", " ") for name, value in values.items()}


def precision(model: ConfigDict) -> str:
    """How the network of `config.model` multiplies, in words."""
    if model.compute_dtype != "float32":
        return f"{model.compute_dtype} products"
    return {
        "highest": "float32 products",
        "high": "TF32 on GPU, 3 bfloat16 passes on TPU",
        "default": "TF32 on GPU, bfloat16 on TPU",
    }[model.precision]


def convention_table(config: ConfigDict) -> str:
    """The conventions beside those of the paper and of its source, `=` where they are the same.

    Made from the three configurations, so that it cannot say what a run does not do.
    """
    mine = conventions(config)
    columns = {name: conventions(presets.get(name)) for name in ("paper", "source")}
    rows: list[tuple[str, ...]] = [("convention", "this run", "paper", "source")]
    for name, value in mine.items():
        others = [column.get(name, "-") for column in columns.values()]
        rows.append((name, value, *("=" if other == value else other for other in others)))
    lines = align(rows)
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def field_table(group: str = "", markdown: bool = False) -> str:
    """Every declared field of a configuration with its default, range and meaning.

    Args:
      group: only fields whose names begin with it.
      markdown: as docs/fields.md has it, in place of a list for the terminal.

    Raises:
      UsageError: no field begins so.
    """
    layers = {f"model.layers.NAME.{name}": field for name, field in LAYER_FIELDS.items()}
    found = {p: f for p, f in (declared() | layers).items() if p.startswith(group)}
    if not found:
        raise UsageError(f"--group={group}: no field begins so{suggestion(group)}")
    if not markdown:
        return "\n".join(
            f"{path} = {field.default!r}\n    {field.help}\n    {field.range()}"
            + (_FIXED if field.resume == "fixed" else "")
            for path, field in found.items()
        )
    rows = ["| field | default | meaning | values |", "|---|---|---|---|"]
    for path, field in found.items():
        values = f"{field.range()}; since {field.since}"
        values += _FIXED if field.resume == "fixed" else ""
        cells = (f"`{path}`", f"`{field.default!r}`", field.help, values)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def shape_text(shape: tuple[int, ...]) -> str:
    """Such as `13 x 13 x 384`."""
    return " x ".join(str(n) for n in shape)


def align(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of equal length as lines of padded columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
