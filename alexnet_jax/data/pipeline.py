"""Batches for training and evaluation, each a pure function of its number.

A *plan* says which examples batch `k` holds and what is done to them; it is arithmetic on a few
cached arrays. `tf.data` runs over the numbers of batches: each is read as squares, which the source
makes, and cropped. Resuming means to start counting elsewhere.
"""

import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config.fields import FIELDS
from alexnet_jax.data import augment
from alexnet_jax.data.protocol import Reader, Source
from alexnet_jax.data.tensorflow_cpu import compute_threads, import_tensorflow
from alexnet_jax.errors import UsageError

Batch = dict[str, np.ndarray]
Plan = Callable[[int], Batch]
"""From a batch number to columns `[b, ...]`, among them `index`."""

Unreadable = dict[int, str]
"""Images that cannot be read: from their indices to the place and the reason."""

_TYPES = {
    "image": np.uint8, "label": np.int32, "index": np.int32, "colour": np.float32,
    "mask": np.float32,
}  # fmt: skip
"""The arrays of a batch, of which training has `colour` and evaluation `mask`."""

_BATCHES_AT_ONCE = 3
"""Batches that are made at a time: one is decoded while another is read or cropped."""

_BATCHES_READY = 2


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Batches of one training epoch.

    The remainder is dropped; since each epoch has its own order, it drops different examples.

    Raises:
      UsageError: there are not enough examples for one batch.
    """
    if not 0 < batch_size <= num_examples:
        raise UsageError(
            f"config.batch_size = {batch_size}: must be between 1 and the {num_examples} training "
            "examples"
        )
    return num_examples // batch_size


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    part: tuple[int, int] = (0, 1),
    unreadable: Unreadable | None = None,
    gives_way: bool = False,
) -> Iterator[Batch]:
    """Yields random crops without end, one batch per step.

    Step `k` is batch `k % steps_per_epoch` of epoch `k // steps_per_epoch`.

    Args:
      source: the images.
      config: `config.data`.
      seed: seed of the order and of the augmentation.
      batch_size: images per batch, over all processes.
      start_step: the first step to yield.
      part: which part of each batch to read, counted from 0, and the number of equal parts.
      unreadable: the images known to be unreadable; those found are added. Each is replaced by the
        next readable one in the epoch's order, up to `config.max_unreadable` images.
      gives_way: whether the threads that make batches have the lowest priority, as they should
        where the same processor computes the steps (on Linux).

    Yields:
      `image` uint8 `[b, crop, crop, 3]`, `label` int32 `[b]`, `colour` float32 `[b, 3]` (the shift
      in grey levels that the device adds), `index` int32 `[b]` (the index of the example in the
      source), with `b = batch_size / parts`.

    Raises:
      UsageError: immediately if values do not fit together; while iterating if an image cannot be
        read and `config.max_unreadable` others were found before.
    """
    unreadable = {} if unreadable is None else unreadable
    which, local = part[0], _local_size(batch_size, part[1])
    steps = steps_per_epoch(source.num_examples, batch_size)
    FIELDS["data.pad"].check("data.pad", config.pad)
    if config.pad >= config.image_size:
        raise UsageError(f"config.data.pad = {config.pad}: must be less than data.image_size")

    @functools.lru_cache(maxsize=2)  # Two, because reading ahead crosses epochs.
    def of_epoch(epoch: int) -> tuple[np.ndarray, augment.Draws]:
        return (
            augment.order(seed, epoch, source.num_examples),
            augment.draws(seed, epoch, source.num_examples, config),
        )

    def plan(step: int) -> Batch:
        epoch, number = divmod(step, steps)
        order, draws = of_epoch(epoch)
        first = number * batch_size + which * local
        index = _readable(order, np.arange(first, first + local), unreadable)
        return {
            "index": index.astype(np.int32),
            "colour": augment.colour_shift(draws.gaussians[index], config.colour),
            "offset": draws.offset[index],
            "flip": draws.flip[index],
        }

    def crop(image: np.ndarray, offset: np.ndarray, flip: np.ndarray, **rest: np.ndarray) -> Batch:
        cut = augment.crop(image, offset, flip, crop_size=config.crop_size, pad=config.pad)
        return {"image": cut, **rest}

    numbers = range(start_step, sys.maxsize)
    return _stream(source, config, plan, numbers, crop, unreadable, gives_way)


def train_indices(seed: int, num_examples: int, batch_size: int, step: int) -> np.ndarray:
    """Indices of the images of batch `step` (from 0), provided all are readable: int64 `[b]`."""
    epoch, number = divmod(step, steps_per_epoch(num_examples, batch_size))
    order = augment.order(seed, epoch, num_examples)
    return order[number * batch_size : (number + 1) * batch_size]


def eval_batches(
    source: Source,
    config: ConfigDict,
    *,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
    unreadable: Unreadable | None = None,
    gives_way: bool = False,
) -> Iterator[Batch]:
    """Yields every example once over all parts, in order, uncropped and without augmentation.

    Every part yields the same number of batches, and all are full: positions past the end, and
    those of images that cannot be read, hold other examples with mask 0.

    Args:
      source: the images.
      config: `config.data`.
      batch_size: images per batch, over all processes.
      part: which part of each batch to read, counted from 0, and the number of equal parts.
      unreadable: as in `train_batches`.
      gives_way: as in `train_batches`.

    Yields:
      `image` uint8 `[b, S, S, 3]` with `S = image_size` (crops are cut on the device), `label`
      int32 `[b]`, `mask` float32 `[b]`, `index` int32 `[b]`.

    Raises:
      UsageError: as in `train_batches`.
    """
    unreadable = {} if unreadable is None else unreadable
    which, local = part[0], _local_size(batch_size, part[1])
    order = np.arange(source.num_examples)
    last = source.num_examples - 1

    def plan(number: int) -> Batch:
        first = number * batch_size + which * local
        position = np.arange(first, first + local)
        index = _readable(order, np.minimum(position, last), unreadable)
        return {
            "index": index.astype(np.int32),
            "mask": (index == position).astype(np.float32),
        }

    numbers = range(last // batch_size + 1)
    return _stream(source, config, plan, numbers, dict, unreadable, gives_way)


def checked(source: Source, read: Reader) -> Reader:
    """A reader of a source that refuses what no network can learn; all batches come through it.

    Raises, whenever it reads:
      UsageError: an image is not such a square, or a label is not one of the classes.
    """
    classes, where = len(source.class_names), f"{source.name}, {source.split}"

    def reader(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = map(np.asarray, read(indices))
        count = len(indices)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[::3] != (count, 3):
            found = f"{images.dtype} {list(images.shape)}"
            raise UsageError(f"{where}: images are {found}: give uint8 [{count}, S, S, 3]")
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            found = f"{labels.dtype} {list(labels.shape)}"
            raise UsageError(f"{where}: labels are {found}: give whole numbers [{count}]")
        for index, label in zip(indices, labels.tolist(), strict=True):
            if label < 0 or (classes and label >= classes):
                allowed = f"0 to {classes - 1}" if classes else "0 or more"
                hint = " (-1 often stands for a hidden label)" if label == -1 else ""
                raise UsageError(
                    f"{source.describe(int(index))} has the label {label}: labels are {allowed}; "
                    f"use images whose classes are known{hint}"
                )
        return images, labels.astype(np.int32, copy=False)

    return reader


def _readable(order: np.ndarray, positions: np.ndarray, unreadable: Unreadable) -> np.ndarray:
    """The examples at `positions` of `order`, or the next readable one for each unreadable one."""
    index = order[positions]
    for i, place in enumerate(positions) if unreadable else ():
        steps = 0
        while int(index[i]) in unreadable and steps < len(order):
            steps += 1
            index[i] = order[(place + steps) % len(order)]
    return index


def _local_size(batch_size: int, parts: int) -> int:
    if batch_size < 1 or batch_size % parts:
        raise UsageError(f"batch_size {batch_size} must be a positive multiple of {parts} parts")
    return batch_size // parts


def _stream(
    source: Source,
    config: ConfigDict,
    plan: Plan,
    numbers: range,
    finish: Callable[..., Batch],
    unreadable: Unreadable,
    gives_way: bool,
) -> Iterator[Batch]:
    """The batches of `numbers`: planned, read as squares, and finished.

    `finish` gets arrays by name, `image` `[b, S, S, 3]`, `label` and the columns of the plan, and
    returns the batch.
    """
    # Now, so that values that do not fit are an error before anything is iterated.
    read = source.squares(config)
    read_checked = checked(source, read)
    plan(numbers.start)

    def make(number: int) -> Batch:
        columns = plan(number)
        image, label = read_checked(columns["index"])
        return finish(image=image, label=label, **columns)

    def note_unreadable(number: int) -> bool:
        """Adds those of a batch; returns whether there are any."""
        found = _unreadable(read, plan(number)["index"])
        unreadable.update(found)
        if len(unreadable) > config.max_unreadable:
            first = next(iter((found or unreadable).values()))
            limit = f"; {config.max_unreadable} were allowed (config.data.max_unreadable)"
            raise UsageError(
                f"{first}; replace or remove it" + (limit if config.max_unreadable else "")
            )
        if len(unreadable) == source.num_examples:
            raise UsageError(f"{source.name}: no image of {source.split} is readable")
        return bool(found)

    running = [_dataset(weakref.ref(make), numbers, gives_way)]
    batches = _batches(running, make, numbers, note_unreadable)
    # Ends the threads of tf.data when the batches are dropped and, at the latest, as the program
    # exits: a thread that enters Python while the interpreter shuts down never returns, and
    # TensorFlow would wait for it for ever.
    weakref.finalize(batches, running.clear)
    return batches


def _give_way(threads: Iterable[int]) -> None:
    """Gives threads of this process the lowest priority.

    The parts of a training step wait for each other, so that a core that is taken away from one of
    them is lost to all. A step that waits for its batch instead leaves all cores to the input.
    """
    if sys.platform == "linux":  # Elsewhere priorities belong to processes.
        for thread in threads:
            # A thread that has just ended, or a system that forbids it: only speed is lost.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, 19)


def _dataset(
    weak_make: weakref.ref[Callable[[int], Batch]], numbers: range, gives_way: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """`make` over `numbers` by `tf.data`: whether it worked, and the arrays in their order.

    It is a weak reference, because TensorFlow keeps `made` until the process ends, and would keep
    the source and the draws with it.
    """
    tf = import_tensorflow()

    def made(number: np.ndarray) -> list[np.ndarray]:
        if gives_way:
            _give_way([threading.get_native_id()])
        make = weak_make()
        assert make is not None  # the consumer holds it
        try:
            batch = make(int(number))
        except UsageError:  # the consumer makes it again, and gets the error itself
            return [np.array(False), *(np.zeros(0, dtype) for dtype in _TYPES.values())]
        return [np.array(True), *(batch.get(name, np.zeros(0, t)) for name, t in _TYPES.items())]

    def load(number: Any) -> Any:
        return tf.numpy_function(made, [number], [tf.bool, *_TYPES.values()])

    options = tf.data.Options()
    options.deterministic = True
    # `load` neither branches nor loops in Python, which AutoGraph takes a second to find out.
    plain = tf.autograph.experimental.do_not_convert(load)
    dataset = (
        tf.data.Dataset.range(numbers.start, numbers.stop)
        .map(plain, num_parallel_calls=_BATCHES_AT_ONCE)
        .prefetch(_BATCHES_READY)
        .with_options(options)
    )
    batches = dataset.as_numpy_iterator()
    if gives_way:
        _give_way(compute_threads())
    return batches


def _batches(
    running: list[Iterator[tuple[np.ndarray, ...]]],
    make: Callable[[int], Batch],
    numbers: range,
    note_unreadable: Callable[[int], bool],
) -> Iterator[Batch]:
    """What `_dataset` made; a batch that failed is made again, without unreadable images."""
    for number in numbers:
        worked, *arrays = next(running[0])
        batch = dict(zip(_TYPES, arrays, strict=True))
        yield (
            {n: x for n, x in batch.items() if x.size}
            if worked
            else _again(number, make, note_unreadable)
        )


def _again(
    number: int, make: Callable[[int], Batch], note_unreadable: Callable[[int], bool]
) -> Batch:
    """A batch that failed, planned without the images that cannot be read."""
    while True:
        # There is nothing new if an evaluation found the image after this batch was planned, or if
        # the file could not be read for a moment. If it fails even so, the reason is another one.
        new = note_unreadable(number)
        try:
            return make(number)
        except UsageError:
            if not new:
                raise


def _unreadable(read: Reader, indices: np.ndarray) -> Unreadable:
    """Those of `indices` that cannot be read, and why."""
    found = {}
    for index in sorted({int(i) for i in indices}):
        try:
            read(np.array([index]))
        except UsageError as error:
            found[index] = str(error)
    return found
