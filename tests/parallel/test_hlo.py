"""Programs read from their text: small ones by hand, and excerpts of real ones."""

from pathlib import Path

import pytest

from alexnet_jax.analysis.traffic import moved
from alexnet_jax.config import presets
from alexnet_jax.parallel import exchange, hlo
from alexnet_jax.parallel.hlo import Array

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.hlo"))

TEXT = (Path(__file__).parent / "by_hand.hlo").read_text()


def test_a_program_is_read():
    program = hlo.parse(TEXT)
    assert program.entry == "main" and program.computations.keys() == {
        "fused", "in_place", "body", "cond", "small", "large", "main",
    }  # fmt: skip
    by_name = {one.name: one for one in program.computations["main"]}
    loop = by_name["loop"]
    assert loop.opcode == "while" and loop.operands == ("pair",)
    assert loop.results == (Array("s32", ()), Array("f32", (8, 4), "1,0"))
    assert loop.computations("body") == ["body"]
    assert by_name["z"].computations("true_computation", "false_computation") == ["small", "large"]
    out = by_name["out"]
    assert out.is_root and out.operands == ("near", "y") and out.scope == "jit(f)/fc6/dot"
    assert [one.number for one in program.computations["fused"]][:2] == [0, 1]
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule m\n")


# Bytes by hand: an array of 8 x 4 float32 has 128, a row of it 16, an index 4.
BY_HAND = {
    "row": 16 + 16,
    "part": 32 + 4 + 32,  # two rows of the operand, the index, two rows
    "whole": 16 + 4 + 16,  # the row, the index, and the row in its place
    "twice": 3 * (2 * 128 + 128),
    "neg": 128 + 128,  # the larger branch; the other does nothing
    "there": 128,  # read; what is written is not in the main memory
    "out": 128 + 128,  # one operand, and the result
}


def test_traffic_is_what_it_is_by_hand():
    found = {one.name: one.bytes for one in moved(hlo.parse(TEXT))}
    assert found == BY_HAND
    kinds = {one.name: one.opcode for one in moved(hlo.parse(TEXT))}
    assert kinds["twice"] == "while/add" and kinds["neg"] == "conditional/negate"


@pytest.mark.parametrize(
    "array,bytes_",
    [
        (Array("f32", (3, 5)), 60),
        (Array("bf16", (3, 5), "1,0"), 30),
        (Array("pred", (7,)), 7),
        (Array("s4", (8,)), 4),
        (Array("f8e4m3fn", (3,)), 3),
        (Array("token", ()), 0),
        # Tiles of 8 x 128: rows become 8, columns 128.
        (Array("f32", (3, 5), "1,0:T(8,128)"), 8 * 128 * 4),
        (Array("f32", (9, 129), "1,0:T(8,128)"), 16 * 256 * 4),
        # The first axis is the fastest: it fills the lanes.
        (Array("bf16", (64, 48, 55), "0,1,2:T(8,128)(2,1)"), 128 * 48 * 55 * 2),
    ],
)
def test_arrays_have_the_bytes_of_their_layout(array, bytes_):
    assert array.bytes == bytes_


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_exchanges_of_real_programs_equal_the_arithmetic(path):
    """Two groups of two towers, 64 images each; the halves of asynchronous pairs count once."""
    config = presets.get("caffe")
    config.batch_size, config.model.compute_dtype = 128, "bfloat16"
    expected = exchange.points(config, 2)
    found = exchange.collectives(path.read_text(), 4)
    sums = exchange.by_point(found, [point.name for point in expected])
    for point in expected:
        images = 64 if point.axis == "tower" else 1
        elements, bytes_ = point.elements * images, point.bytes * images
        metrics = 3 if point.name == exchange.GRADIENTS else 0  # three sums of metrics
        assert sums[point.name] == (elements + metrics, bytes_ + 4 * metrics), point.name
    # By hand: the other half of 6 x 6 x 256 there and back, 64 images, two bytes.
    assert sums["fc6"] == (64 * 2 * 6 * 6 * 128, 64 * 2 * 6 * 6 * 128 * 2)
    assert {one.devices for one in found} == {2}


def test_a_program_that_is_not_compiled_yet_has_heads_without_arguments():
    text = "HloModule m\n\nregion_0.1 {\n  ROOT a.1 = f32[] parameter(0)\n}\n\n"
    text += "ENTRY main.3 {\n  Arg_0.1 = f32[2]{0} parameter(0)\n"
    text += "  ROOT psum.2 = f32[2]{0} all-reduce(Arg_0.1), replica_groups={{0,1}}, to_apply=r\n}\n"
    assert hlo.parse(text).computations.keys() == {"region_0.1", "main.3"}
    assert [one.elements for one in exchange.collectives(text, 2)] == [2]
