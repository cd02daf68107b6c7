"""Speed of the input pipeline, alone and as part of training.

    python -m benchmarks.input --source=tfds:imagenet2012

The pipeline is compared with a bare `tf.data` map, and training from it with the bare training
step. Writes input.json and input.md into --out. For the figures of `prepared:PATH`, the data set is
prepared once in a temporary folder, or in --prepared.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alexnet_jax import parallel
from alexnet_jax.cli import process
from alexnet_jax.config import presets
from benchmarks.run import processor

HERE = Path(__file__).parent
BARE, DECODING = "bare map, JPEG", "decoding alone, JPEG"


def bare_map(source, config, batch_size: int, only_decode: bool = False) -> Iterator:
    """The simplest `tf.data` pipeline: decodes, resizes, crops and flips each image, and batches.

    With `only_decode` an image is decoded and dropped, which is the least that any pipeline has to
    do with JPEG files.
    """
    import tensorflow as tf

    from alexnet_jax.data.decode import to_square

    square = to_square(config.resize, config.shrink, config.image_size)
    crop = config.crop_size

    def one(encoded):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        if only_decode:
            return image[0, 0]
        image = tf.image.random_crop(square(image), (crop, crop, 3))
        return tf.image.random_flip_left_right(image)

    encoded, _ = source.read(np.arange(source.num_examples))
    dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat()
    dataset = dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(2).as_numpy_iterator()


def speed(stream: Iterator, batches: int, batch_size: int) -> float:
    """Images per second, measured after the batches that were read ahead are used up."""
    for _ in range(4):
        next(stream)
    before = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * batch_size / (time.perf_counter() - before)


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="tfds:imagenet2012")
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="training steps per measurement")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    process.use_huge_pages()  # as the command does
    config = presets.get("paper")
    config.data.source = args.source
    parallel.prepare_host(config)

    from alexnet_jax.analysis import bench
    from alexnet_jax.data import pipeline
    from alexnet_jax.data.prepare import prepare
    from alexnet_jax.data.sources import open_source

    data, size = config.data, config.batch_size
    source = open_source(args.source, data.train_split)
    with tempfile.TemporaryDirectory() as folder:
        root = args.prepared or Path(folder)
        for split in (data.train_split, data.test_split):
            if not (root / split / "split.json").exists():
                images = open_source(args.source, split)
                prepare(images, data, root / split, lambda done, total: None)
        squares = open_source(f"prepared:{root}", data.train_split)

        def ours(images) -> Iterator:
            return pipeline.train_batches(images, data, seed=0, batch_size=size)

        streams = {
            BARE: (lambda: bare_map(source, data, size), 20),
            "ours, JPEG": (lambda: ours(source), 20),
            DECODING: (lambda: bare_map(source, data, size, only_decode=True), 20),
            "ours, prepared": (lambda: ours(squares), 100),
        }
        speeds = {name: [] for name in streams}
        for _ in range(args.rounds):
            for name, (make, batches) in streams.items():
                speeds[name].append(speed(make(), batches, size))
        result = {
            "machine": f"{processor()}, {os.cpu_count()} cores",
            "images": source.num_examples,
            "batch_size": size,
            "images_per_second": speeds,
            "training": {},
        }
        for name, images in (("JPEG", args.source), ("prepared", f"prepared:{root}")):
            config.data.source = images
            measured = bench.run(config, args.rounds, args.steps)
            result["training"][name] = measured | {"source": images.partition(":")[0]}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "input.json").write_text(json.dumps(result, indent=2) + "\n")
    text = table(result)
    (args.out / "input.md").write_text(text)
    print(text)


def table(result: dict) -> str:
    """The result as Markdown."""
    size, machine = result["batch_size"], result["machine"]
    lines = [
        f"{result['images']} photographs, batch {size}, {machine}: medians.",
        "",
        "| input alone | images/s | of the bare map |",
        "|---|---|---|",
    ]
    medians = {n: statistics.median(v) for n, v in result["images_per_second"].items()}
    bare = medians[BARE]
    lines += [f"| {n} | {v:.0f} | {v / bare:.2f} |" for n, v in medians.items()]
    lines += ["", "| training from | images/s | bare step | share |", "|---|---|---|---|"]
    for name, row in result["training"].items():
        lines.append(
            f"| {name} | {row['end_to_end']:.1f} | {row['train']:.1f} | "
            f"{row['step_fraction']:.3f} |"
        )
    step = result["training"]["JPEG"]["train"]
    lines += [
        "",
        "A step keeps every core busy, so the times of the step and of the input add up. Training",
        "from JPEG reaches at most "
        f"{1 / (1 + step / medians[DECODING]):.3f} of the speed of the bare step if the input only "
        f"decodes, and {1 / (1 + step / bare):.3f} with the bare map.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
