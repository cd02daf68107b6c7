"""What devices send each other in a step of a configuration, as a table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.analysis.inspect import align
from alexnet_jax.config import table
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.model.precision import widened
from alexnet_jax.model.tower import build_tower, initial_statistics, parameter_shapes
from alexnet_jax.parallel.exchange import alternatives, by_point, collectives, points
from alexnet_jax.training import optimizers
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import make_train_step


def lower_step(config: ConfigDict, placement: parallel.Placement) -> jax.stages.Lowered:
    """The training step of `config`, lowered for a placement; nothing is drawn and nothing runs."""
    tower = build_tower(config.model)
    data, size = config.data, config.batch_size
    inputs = input_rules.build(data, np.zeros((data.image_size, data.image_size, 3), np.float32))
    tx = optimizers.build(config, steps_per_epoch=1000, num_steps=1000)
    step: Any = make_train_step(config, tower, inputs, tx, placement, 1000)
    shapes = parameter_shapes(tower, data.crop_size)
    statistics = initial_statistics(tower, data.crop_size)
    state = init_state(shapes, tx, batch_stats=statistics)
    side = data.crop_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8),
        "colour": jax.ShapeDtypeStruct((size, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return step.lower(state, batch)


def compile_step(config: ConfigDict, placement: parallel.Placement) -> jax.stages.Compiled:
    """The compiled training step of `config`, to be read: HLO text and memory."""
    options: dict[str, Any] = dict(placement.compiler_options())
    if placement.on_cpu:
        # The text is that before LLVM, whose optimizations take half of the time.
        options["xla_backend_optimization_level"] = "0"
    return lower_step(config, placement).compile(options)


def report(config: ConfigDict) -> str:
    """What this run's devices exchange, by arithmetic and as compiled, beside other schemes."""
    placement = parallel.place(config)
    parts = placement.data_parallel
    devices = placement.mesh.devices.size
    images = config.batch_size // parts
    expected = points(config, parts)
    program = collectives(compile_step(config, placement).as_text() or "", devices)
    # A program that accumulates has the exchanges of its loop once, for one part of the images.
    images_once = images // config.accumulate_steps
    compiled = by_point(program, [point.name for point in expected])

    rows = [("point", "collectives", "elements", "bytes", "bytes as compiled")]
    between = [point for point in expected if point.axis == parallel.TOWER]
    for point in between:
        passes = f"{point.forward:,}" + (f" + {point.backward:,}" if point.backward else "")
        measured = compiled[point.name][1] / images_once
        rows.append((point.name, point.how, passes, f"{point.bytes:,}", f"{measured:,.0f}"))
    elements, sent = (sum(getattr(p, name) for p in between) for name in ("elements", "bytes"))
    measured = sum(compiled[point.name][1] for point in between) / images_once
    rows.append(("towers", "per image", f"{elements:,}", f"{sent:,}", f"{measured:,.0f}"))
    step, measured = sent * images, measured * images
    for point in expected:
        if point.axis != parallel.TOWER:
            n, seen = point.bytes, compiled[point.name][1]
            how = f"{point.how}, per step"
            rows.append((point.name, how, f"{point.elements:,}", f"{n:,}", f"{seen:,}"))
            step, measured = step + n, measured + seen
    lines = align(rows, right=(2, 3, 4))
    lines.insert(1, "-" * len(lines[0]))

    dtype = jnp.dtype(config.model.compute_dtype)
    each = f"batch {config.batch_size}: {images} images for each group of {config.model.towers}"
    head = f"{placement.describe()}; {each}, {dtype}"
    if devices == 1 and config.model.towers > 1:
        head += "\nOne device runs every tower and sends nothing; the figures are for two devices."
    if placement.mesh.devices.flat[0].platform == "cpu" and dtype.itemsize < 4:
        head += f"\nXLA exchanges {dtype} as float32 between CPU devices."
    shares = [("per step and device", "MB", "MB as compiled")]
    shares.append(("towers (this run)", f"{step / 1e6:,.1f}", f"{measured / 1e6:,.1f}"))
    for scheme in alternatives(config, max(devices, 2)):
        width = jnp.dtype(config.gradient_sum_dtype).itemsize
        sent = width * scheme.gradients + dtype.itemsize * scheme.activations
        shares.append((scheme.name, f"{sent / 1e6:,.1f}", "-"))
    below = align(shares, right=(1, 2))
    below.insert(1, "-" * len(below[0]))
    below += ["", "Received by one device, which sends as much; MB are 10^6 bytes."]
    others = config.model.towers - 1
    for row in table.count(config.model, config.data.crop_size):
        gathered = 2 * dtype.itemsize * row.exchanged
        summed = (widened(dtype).itemsize + dtype.itemsize) * row.layer.features * others
        if row.layer.kind == "dense" and row.layer.exchange == "inputs" and summed < gathered:
            field = f"--config.model.layers.{row.layer.name}.exchange=partial_sums"
            below.append(f"{field} sends {summed:,} bytes per image instead of {gathered:,}.")
    return "\n".join([head, "", *lines, "", *below])
