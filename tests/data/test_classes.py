"""The most probable classes of an image, and what they are called."""

import numpy as np
import pytest

from alexnet_jax.data.classes import best, five_best, imagenet_classes, keys, words


@pytest.mark.parametrize("seed", range(5))
def test_the_best_come_first_and_of_equal_ones_the_lower_number(seed):
    probabilities = np.random.default_rng(seed).integers(0, 6, 20).astype(np.float32) / 64
    order = sorted(range(20), key=lambda i: (-probabilities[i], i))[:5]
    for names in (tuple(f"name {i}" for i in range(20)), ()):
        expected = [(i, names[i] if names else str(i), float(probabilities[i])) for i in order]
        assert best(probabilities, names) == expected
    assert [i for i, _, _ in best(np.float32([0.2, 0.5, 0.3]), tuple("abc"))] == [1, 2, 0]


def test_classes_of_imagenet_are_shown_with_their_words():
    found = best(np.float32([0.25, 0.75]), ("n01440764", "cat"))
    assert found == [(1, "cat", 0.75), (0, "n01440764 tench", 0.25)]


def test_words_have_no_wordnet_numbers_unless_they_tell_classes_apart():
    assert words(("n01440764", "n01440764-tench and so on", "cat", "n1")) == (
        "tench", "tench and so on", "cat", "n1",
    )  # fmt: skip
    assert words(("n02012849 crane", "n03126707 crane")) == ("n02012849 crane", "n03126707 crane")
    every = words(imagenet_classes())
    assert len(set(every)) == 1000 and every[:2] == ("tench", "goldfish")
    assert words(()) == ()


def test_the_five_best_are_in_order():
    probabilities = np.array([0.1, 0.05, 0.4, 0.2, 0.04, 0.21])
    found = five_best(probabilities, tuple("abcdef"), 3)
    assert [name for name, _, _ in found] == ["c", "f", "d", "a", "b"]
    assert [right for *_, right in found] == [False, False, True, False, False]
    assert found[0][1] == pytest.approx(40)


def test_the_classes_of_imagenet_are_a_thousand_in_the_order_of_their_ids():
    wnids = [line.partition(" ")[0] for line in imagenet_classes()]
    assert len(set(wnids)) == 1000 and wnids == sorted(wnids)


@pytest.mark.parametrize(
    "first,second,same",
    [
        (("cat", "dog"), ("cat", "dog"), True),
        (("cat", "dog"), ["cat", "dog"], True),
        (("cat", "dog"), ("dog", "cat"), False),
        (("cat",), ("cat", "dog"), False),
        ((), ("cat",), False),
        (("n01440764", "n01443537"), ("n01440764 tench", "n01443537 goldfish"), True),
        (("n01440764-tench",), ("n01440764 tench, Tinca tinca",), True),
        (("n01440764_tench",), ("n01440764",), True),
        (("n01440764", "n01443537"), ("n01443537 goldfish", "n01440764 tench"), False),
        (("n01440764", "n01443537"), ("n01440764 tench",), False),
        (("tench",), ("n01440764 tench",), False),  # only where both have numbers
        (("n01440764", "cat"), ("n01440764 tench", "cat"), True),
        (("n014407641",), ("n01440764",), False),
        (("n01440764a",), ("n01440764",), False),
        # A number that several classes have says nothing.
        (("n00000001 a", "n00000001 b"), ("n00000001 b", "n00000001 a"), False),
        (("n00000001 a", "n00000001 b"), ("n00000001 a", "n00000001 b"), True),
    ],
)
def test_classes_are_the_same_by_name_or_by_wordnet_number(first, second, same):
    assert (keys(first) == keys(second)) == same
