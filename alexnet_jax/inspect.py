"""The network of a configuration as tables, without running it."""

from ml_collections import ConfigDict

from alexnet_jax.models import table


def layer_table(config: ConfigDict) -> str:
    """Every layer with its shapes, parameters, multiply-adds an image and exchange."""
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
                _shape(row.out_shape),
                _shape(row.next_shape),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                f"{row.exchanged:,}" if row.exchanged else "-",
            )
        )
    total = (
        "total",
        "",
        "",
        "",
        f"{sum(r.parameters for r in rows):,}",
        f"{sum(r.macs for r in rows):,}",
        f"{sum(r.exchanged for r in rows):,}",
    )
    lines = align([columns, *cells, total], right=(4, 5, 6))
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, "-" * len(lines[0]))
    towers = f"{config.model.towers} tower{'s' if config.model.towers > 1 else ''}"
    crop = config.data.crop_size
    notes = [
        f"{towers}, input {crop} x {crop} x 3; shapes are of all towers together.",
        "exchange: elements that each tower receives from the others for an image, forward.",
    ]
    return "\n".join([*lines, "", *notes])


def _shape(shape: tuple[int, ...]) -> str:
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
