"""Batches for training and evaluation, each a pure function of its number.

A *plan* says which examples batch `k` holds and what happens to them; it is arithmetic and a few
cached arrays. `tf.data` then runs over batch numbers: fetch all bytes of a batch, decode its
images one by one in parallel, stack them again. Resuming is starting to count elsewhere.
"""

import collections
import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import augment
from alexnet_jax.data.decode import FORMATS, decode, pixels, to_square
from alexnet_jax.data.prepared_source import Prepared
from alexnet_jax.data.sources import Source
from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError

Batch = dict[str, np.ndarray]
Plan = Callable[[int], Batch]
"""From a batch number to columns `[b, ...]`, among them `index`."""

Unreadable = dict[int, str]
"""Images that cannot be read, by their number: the place and the reason."""

_BATCHES_READ_AHEAD = 2
_BATCHES_FINISHED_AT_ONCE = 2
_BATCHES_READY = 2


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Batches of one training epoch.

    The remainder is dropped: other examples each epoch, since each has its own order.

    Raises:
      UsageError: there is not one whole batch.
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
) -> Iterator[Batch]:
    """Endless random crops, one batch a step.

    Step `k` is batch `k % steps_per_epoch` of epoch `k // steps_per_epoch`.

    Args:
      source: the images.
      config: `config.data`.
      seed: of the order and of the augmentation.
      batch_size: over all processes.
      start_step: the first step to yield.
      part: which part of each batch to read, counted from 0, and of how many equal ones.
      unreadable: images found so, by their number, with the place and the reason; grows. In the
        place of each stands the next readable one of the epoch's order, up to
        `config.max_unreadable` images.

    Yields:
      `image` uint8 `[b, crop, crop, 3]`, `label` int32 `[b]`, `colour` float32 `[b, 3]` (the shift
      in grey levels that the device adds), `index` int32 `[b]` (the example's number in the
      source), with `b = batch_size / parts`.

    Raises:
      UsageError: at once for values that do not fit; while iterating for an image that cannot be
        read, with its path, where `config.max_unreadable` are found already.
    """
    unreadable = {} if unreadable is None else unreadable
    which, local = part[0], _local_size(batch_size, part[1])
    steps = steps_per_epoch(source.num_examples, batch_size)
    if not 0 <= config.pad < config.image_size:
        raise UsageError(f"data.pad {config.pad} must be 0 or more and less than data.image_size")

    @functools.lru_cache(maxsize=2)  # Reading ahead works on two epochs where they meet.
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

    cut = functools.partial(augment.crop, crop_size=config.crop_size, pad=config.pad)
    numbers = range(start_step, sys.maxsize)
    if isinstance(source, Prepared):

        def cut_squares(image: list, offset: Any, flip: Any, **rest: Any) -> Batch:
            return {"image": cut(image, offset, flip), **rest}

        return _prepared_stream(source, config, plan, numbers, cut_squares)

    def finish(image: Any, offset: Any, flip: Any, **rest: Any) -> dict[str, Any]:
        tf = import_tensorflow()
        crops = tf.numpy_function(cut, [image, offset, flip], tf.uint8)
        return {"image": crops, **rest}

    return _stream(source, config, plan, numbers, finish, unreadable)


def train_indices(seed: int, num_examples: int, batch_size: int, step: int) -> np.ndarray:
    """The numbers of the images of batch `step` (from 0), were all readable: int64 `[b]`."""
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
) -> Iterator[Batch]:
    """Every example once over all parts, in order, whole and without padding or draws.

    Every part yields the same number of batches, and all are full: positions past the end
    hold other examples with mask 0, and so do those of images that cannot be read.

    Args:
      source: the images.
      config: `config.data`.
      batch_size: over all processes.
      part: which contiguous part of each batch to read, counted from 0, and of how many.
      unreadable: as `train_batches`.

    Yields:
      `image` uint8 `[b, S, S, 3]` with `S = image_size` (crops are cut on the device), `label`
      int32 `[b]`, `mask` float32 `[b]`, `index` int32 `[b]`.

    Raises:
      UsageError: as `train_batches`.
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
    if isinstance(source, Prepared):

        def stack(image: list, **rest: Any) -> Batch:
            return {"image": np.stack(image), **rest}

        return _prepared_stream(source, config, plan, numbers, stack)
    return _stream(source, config, plan, numbers, dict, unreadable)


def _readable(order: np.ndarray, positions: np.ndarray, unreadable: Unreadable) -> np.ndarray:
    """The examples at `positions` of `order`; for an unreadable one the next that is not."""
    index = order[positions]
    for i, place in enumerate(positions) if unreadable else ():
        steps = 0
        while int(index[i]) in unreadable and steps < len(order):
            steps += 1
            index[i] = order[(place + steps) % len(order)]
    return index


def squares(source: Source, config: ConfigDict, indices: np.ndarray) -> np.ndarray:
    """Some images as a test sees them before its crops, uint8 `[n, S, S, 3]` with S = image_size.

    Raises:
      UsageError: one cannot be read; names it.
    """
    if isinstance(source, Prepared):
        source.check(config)
        return np.stack(source.read(indices)[0])
    if found := _unreadable(source, config, indices):
        raise UsageError(next(iter(found.values())))
    square = to_square(config.resize, config.shrink, config.image_size)
    encoded, _ = source.read(indices)
    return np.stack([square(decode(image)).numpy() for image in encoded])


def _local_size(batch_size: int, parts: int) -> int:
    if batch_size < 1 or batch_size % parts:
        raise UsageError(f"batch_size {batch_size} must be a positive multiple of {parts} parts")
    return batch_size // parts


def _prepared_stream(
    source: Prepared,
    config: ConfigDict,
    plan: Plan,
    numbers: range,
    finish: Callable[..., Batch],
) -> Iterator[Batch]:
    """The batches of `numbers` from squares on disk."""
    source.check(config)
    plan(numbers.start)  # Values that do not fit are an error before anything is iterated.

    def make(number: int) -> Batch:
        columns = plan(number)
        squares, label = source.read(columns["index"])
        return finish(image=squares, label=label, **columns)

    def stream() -> Iterator[Batch]:
        with ThreadPoolExecutor(_BATCHES_READ_AHEAD) as pool:
            ahead: collections.deque[Future[Batch]] = collections.deque()
            for number in numbers:
                ahead.append(pool.submit(make, number))
                if len(ahead) > _BATCHES_READY:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    return stream()


def _stream(
    source: Source,
    config: ConfigDict,
    plan: Plan,
    numbers: range,
    finish: Callable[..., dict[str, Any]],
    unreadable: Unreadable,
) -> Iterator[Batch]:
    """The batches of `numbers`: planned, read, decoded to squares one by one, stacked, finished.

    `finish` gets tensors by their names, `image` `[b, S, S, 3]`, `label` and the plan's columns,
    and returns the batch. Cropping is left to it because TensorFlow's cost of 30 microseconds for
    each operation on each image is more than a small image takes to decode.
    """
    # Planned here and now: values that do not fit are an error before anything is iterated.
    plan(numbers.start)
    start = functools.partial(_dataset, source, config, plan, finish=finish)
    running = [start(numbers)]
    batches = _batches(running, start, source, config, plan, numbers, unreadable)
    # Ends the threads when the batches are dropped and, at the latest, as the program exits: once
    # the interpreter is going down, a thread inside `fetch` never returns, and TensorFlow would
    # wait for it for ever.
    weakref.finalize(batches, running.clear)
    return batches


def _dataset(
    source: Source,
    config: ConfigDict,
    plan: Plan,
    numbers: range,
    finish: Callable[..., dict[str, Any]],
) -> Iterator[Batch]:
    """What `_stream` is, by `tf.data`, up to the first image that cannot be read."""
    tf = import_tensorflow()
    first = plan(numbers.start)
    size = len(first["index"])
    square = to_square(config.resize, config.shrink, config.image_size)

    def fetch(number: np.ndarray) -> list[Any]:
        encoded, label = source.read(plan(int(number))["index"])
        _check_pixels(encoded, config.max_pixels)
        return [np.array(encoded, object), label]

    def load(number: Any) -> tuple[Any, Any]:
        encoded, label = tf.numpy_function(fetch, [number], [tf.string, tf.int32])
        encoded.set_shape((size,))
        label.set_shape((size,))
        return encoded, label

    def columns(number: Any) -> dict[str, Any]:
        types = [column.dtype for column in first.values()]
        values = tf.numpy_function(lambda n: list(plan(int(n)).values()), [number], types)
        for value, column in zip(values, first.values(), strict=True):
            value.set_shape(column.shape)
        return dict(zip(first, values, strict=True))

    def finished(images: tuple[Any, Any], columns: dict[str, Any]) -> dict[str, Any]:
        image, label = images
        return finish(image=image, label=label, **columns)

    # None of these functions branches or loops in Python, and AutoGraph takes a second to see that,
    # at the start of training and of every evaluation.
    plain = tf.autograph.experimental.do_not_convert
    options = tf.data.Options()
    options.deterministic = True
    steps = tf.data.Dataset.range(numbers.start, numbers.stop)
    # Only what decoding needs goes image by image: each column costs each image.
    images = (
        steps.map(plain(load), num_parallel_calls=_BATCHES_READ_AHEAD)
        .unbatch()
        .map(
            plain(lambda encoded, label: (square(decode(encoded)), label)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(size, drop_remainder=True)
    )
    dataset = (
        tf.data.Dataset.zip((images, steps.map(plain(columns))))
        .map(plain(finished), num_parallel_calls=_BATCHES_FINISHED_AT_ONCE)
        .prefetch(_BATCHES_READY)
        .with_options(options)
    )
    return dataset.as_numpy_iterator()


def _batches(
    running: list[Iterator[Batch]],
    start: Callable[[range], Iterator[Batch]],
    source: Source,
    config: ConfigDict,
    plan: Plan,
    numbers: range,
    unreadable: Unreadable,
) -> Iterator[Batch]:
    """NumPy batches; one that fails is planned without the images that made it fail, and all later.

    `tf.data` says what went wrong but not with which example, so that a batch that failed is read
    once more, one example at a time.
    """
    tf = import_tensorflow()
    known = len(unreadable)
    for number in numbers:
        while True:
            try:
                batch = next(running[0])
                break
            except tf.errors.OpError:
                found = _unreadable(source, config, plan(number)["index"])
                # An evaluation may have found them since this batch was read ahead.
                if not found and known == len(unreadable):
                    raise
                unreadable |= found
                if len(unreadable) > config.max_unreadable:
                    first = next(iter((found or unreadable).values()))
                    limit = f"; {config.max_unreadable} were allowed (config.data.max_unreadable)"
                    raise UsageError(
                        f"{first}; replace or remove it" + (limit if config.max_unreadable else "")
                    ) from None
                if len(unreadable) == source.num_examples:
                    raise UsageError(
                        f"{source.name}: no image of {source.split} is readable"
                    ) from None
                known = len(unreadable)
                running[0] = start(numbers[numbers.index(number) :])
        yield batch


def _unreadable(source: Source, config: ConfigDict, indices: np.ndarray) -> Unreadable:
    """Those of `indices` that cannot be read, decoded or resized, and why."""
    tf = import_tensorflow()
    square = to_square(config.resize, config.shrink, config.image_size)
    found = {}
    for index in sorted({int(i) for i in indices}):
        where = source.describe(index)
        try:
            encoded, _ = source.read(np.array([index]))
            _check_pixels(encoded, config.max_pixels)
            square(decode(tf.constant(encoded[0])))
        except UsageError as error:
            reason = str(error)
            found[index] = reason if where in reason else f"{where}: {reason}"
        except tf.errors.OpError as error:
            reason = error.message.split("}}")[-1].split(" [Op:")[0].strip()
            found[index] = f"{where}: not a readable image ({reason})"
    return found


def _check_pixels(encoded: list[bytes], most: int) -> None:
    for image in encoded:
        if not image.startswith(FORMATS):
            raise UsageError("not a JPEG, PNG, BMP or GIF")
        if (count := pixels(image)) > most:
            raise UsageError(
                f"its header says {count} pixels, more than config.data.max_pixels = {most}"
            )
