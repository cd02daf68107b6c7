"""The towers of a configuration as a drawing: what each layer is, and where they exchange."""

import itertools
from html import escape

from ml_collections import ConfigDict

from alexnet_jax.analysis.inspect import SHORT
from alexnet_jax.config import table

_BOX, _GAP, _HEIGHT, _NOTE = 150, 50, 44, 280
_STEP, _CROSS = 62, 92
"""Distance between two layers, and where the towers exchange on the way."""
_MARGIN = 14
_STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1c1e21 }
  .name { font-weight: 600 } .small { font-size: 12px } .middle { text-anchor: middle }
  .box { fill: #eef1fb; stroke: #4a5bbd; stroke-width: 1.5 }
  .other { fill: #fdf1e4; stroke: #a85b13 }
  .line { stroke: #6b7280; stroke-width: 1.5; fill: none }
  .cross { stroke: #b3261e; stroke-width: 2 } .crossing { fill: #b3261e; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e8eb } .box { fill: #262c4a; stroke: #a9b6ff }
    .other { fill: #43301d; stroke: #f0b070 } .line { stroke: #9aa3af }
    .cross { stroke: #ff8a80 } .crossing { fill: #ff8a80 }
  }
"""


def draw(config: ConfigDict) -> str:
    """The towers side by side from the image down to the logits, as an SVG of its own.

    Every number comes from `config.table.count`. Lines that cross between the towers are where a
    layer sees the others; beside them stand the values that a tower receives for each image.
    """
    rows = table.count(config.model, config.data.crop_size)
    towers, crop = config.model.towers, config.data.crop_size
    wide = towers * _BOX + (towers - 1) * _GAP
    lefts = [_MARGIN + tower * (_BOX + _GAP) for tower in range(towers)]
    shapes = [_box(_MARGIN, wide, 0, "image", f"{crop} × {crop} × 3", "")]
    parts, y, whole = [*shapes], 0, True
    for row in rows:
        exchanges = row.exchanged > 0
        top, y = y + _HEIGHT, y + (_CROSS if exchanges else _STEP)
        centres = [left + _BOX / 2 for left in lefts]
        ends = [_MARGIN + wide / 2] * towers if row.layer.last else centres
        if exchanges and not row.layer.last:
            pairs = itertools.product(range(towers), repeat=2)
        else:
            pairs = ((tower, tower) for tower in range(towers))
        for a, b in pairs:
            crossing = a != b or (exchanges and row.layer.last)
            begin = ends[b] if whole else centres[a]
            parts.append(_line(begin, top, ends[b], y, crossing))
        if row.layer.last:
            count = row.layer.features
            parts.append(_box(_MARGIN, wide, y, row.layer.name, f"{count:,} logits", ""))
        else:
            for tower, left in enumerate(lefts):
                one = (*row.out_shape[:-1], row.out_shape[-1] // towers)
                text = " × ".join(f"{side:,}" for side in one)
                parts.append(_box(left, _BOX, y, row.layer.name, text, "other" * (tower % 2)))
        right = _MARGIN + wide + 18
        if exchanges:
            others = "the other tower" if towers == 2 else "the others"
            text = f"{row.exchanged:,} values from {others}"
            parts.append(_text(right, (top + y) / 2 + 5, text, "crossing small"))
        for line, words in enumerate(_notes(row, config)):
            parts.append(_text(right, y + 18 + 17 * line, words, "small"))
        whole = False
    width, height = _MARGIN + wide + 18 + _NOTE, y + _HEIGHT + _MARGIN
    count, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    name = "tower" if towers == 1 else "towers"
    title = f"{towers} {name}, {count:,} parameters, {macs:,} multiply-adds for an image"
    view = f"0 {-_MARGIN} {width} {height + _MARGIN}"
    label = f'role="img" aria-label="{escape(title)}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" {label}>',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def _notes(row: table.LayerCount, config: ConfigDict) -> list[str]:
    """What a layer does, in at most two lines."""
    layer = row.layer
    if layer.kind == "dense":
        first = f"dense, of {row.in_channels:,} values"
    else:
        stride = f", every {layer.stride} pixels" if layer.stride > 1 else ""
        first = f"{layer.kernel} × {layer.kernel} × {row.in_channels} kernels{stride}"
    activation: str = config.model.activation
    names = {"activation": "ReLU" if activation == "relu" else activation}
    off = not config.model.lrn.enabled
    then = [
        names.get(op, SHORT.get(op, op)) for op in layer.then if not (op == "lrn" and off)
    ]  # fmt: skip
    if row.next_shape != row.out_shape:
        then.append("to " + " × ".join(str(side) for side in row.next_shape[:-1]))
    return [first, ", ".join(then)]


def _box(left: float, width: float, y: float, name: str, text: str, kind: str) -> str:
    middle = left + width / 2
    size = f'width="{width:g}" height="{_HEIGHT}"'
    return (
        f'<rect class="box {kind}" x="{left:g}" y="{y:g}" {size} rx="5"/>'
        + _text(middle, y + 18, name, "name middle")
        + _text(middle, y + 36, text, "small middle")
    )


def _line(x1: float, y1: float, x2: float, y2: float, crossing: bool) -> str:
    kind = "line cross" if crossing else "line"
    return f'<path class="{kind}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'
