"""The model of scaling, against arithmetic by hand for a machine with round numbers."""

import dataclasses
import json

import pytest

from alexnet_jax.analysis import targets
from benchmarks import scaling
from benchmarks.scaling import DATA, HYBRID, TOWERS, Counted, Links, Machine

# From the paper's section 3.5: parameters of all layers, of the dense ones, of one tower.
ALL = 60_965_224
DENSE = (9216 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
TOWER = (ALL - 1000) // 2 + 1000


def line(fixed, image, operations):
    """Programs that move `fixed` bytes and `image` bytes for each image."""
    return Counted(tuple((n, fixed + image * n) for n in (32, 128, 512)), operations)


@pytest.fixture
def machine(monkeypatch):
    """1 TB/s of memory, 1 PFLOP/s, links of 100 GB/s among 8 devices and 10 GB/s beyond."""
    peak = {"bfloat16": 1e15}
    device = targets.Device("made up", "cuda", 10**11, 1e12, peak, link=1e11)
    monkeypatch.setitem(scaling.DEVICES, "made up", device)
    links = Links(1, 8, 1e10, "made up")
    return Machine("made up", links, pair=line(1e9, 1e7, 1e9), alone=line(2e9, 3e7, 2e9))


def test_a_step_of_pairs(machine):
    # 2 pairs with 128 images each. What a tower receives for an image: inputs of conv3 and fc7 in
    # both passes in bfloat16; sums of fc6 in float32 and their gradients in bfloat16; logits.
    image = 13 * 13 * 128 * 2 * 2 + 2048 * (4 + 2) + 2048 * 2 * 2 + 1000 * 4
    step = machine.step(TOWERS, 4, 256)
    assert step.compute == pytest.approx((1e9 + 128 * 1e7) / 1e12)
    assert step.activations == pytest.approx(128 * image / 1e11)
    # A ring of two: each sends one half and receives the other's sum.
    assert step.gradients == pytest.approx(4 * TOWER / 1e11)
    assert machine.step(TOWERS, 2, 256).gradients == 0


def test_a_step_with_both_towers_on_each_device(machine):
    step = machine.step(DATA, 4, 256)
    assert step.compute == pytest.approx((2e9 + 64 * 3e7) / 1e12)
    assert step.activations == 0
    assert step.gradients == pytest.approx(4 * 2 * 3 / 4 * ALL / 1e11)
    narrow = dataclasses.replace(machine, width=2).step(DATA, 4, 256)
    assert narrow.gradients == pytest.approx(step.gradients / 2)


def test_a_step_of_one_weird_trick(machine):
    # Inputs of fc6, fc7, fc8 and their gradients, and the logits, of the others' 192 images.
    sent = 192 * (2 * (9216 + 4096 + 4096) + 1000) * 2
    step = machine.step(HYBRID, 4, 256)
    assert step.activations == pytest.approx(sent / 1e11)
    assert step.gradients == pytest.approx(4 * 2 * 3 / 4 * (ALL - DENSE) / 1e11)
    parameters = (ALL - DENSE + DENSE / 4) / ALL
    assert step.compute == pytest.approx((2e9 * parameters + 64 * 3e7 + 2 * sent) / 1e12)


def test_compute_is_the_longer_of_traffic_and_arithmetic(machine):
    # 1e13 operations per image take 10 ms, and 128 images move 2.28 GB.
    slow = dataclasses.replace(machine, pair=line(1e9, 1e7, 1e13), share=0.5)
    assert slow.step(TOWERS, 2, 128).compute == pytest.approx(2 * 1.28)
    assert machine.step(TOWERS, 2, 128).compute == pytest.approx(2.28e-3)


def test_rings_within_and_beyond_a_host(machine):
    assert machine.ring(8) == machine.ring(8, rings=2) == 1e11
    # All 8 adapters for one ring, 4 for each of two.
    assert machine.ring(16) == 8e10 and machine.ring(16, rings=2) == 4e10
    torus = dataclasses.replace(machine, links=Links(2, 256, 0, ""))
    assert [torus.ring(n, rings=2) for n in (2, 4, 8, 256)] == [1e11, 1e11, 2e11, 2e11]


def test_gradients_are_summed_during_the_backward_pass():
    assert scaling.Step(3, 1, 1.5).seconds(overlap=False) == 5.5
    assert scaling.Step(3, 1, 1.5).seconds(overlap=True) == 4
    assert scaling.Step(3, 1, 2.5).seconds(overlap=True) == 4.5


def test_traffic_between_counts_and_beyond_them():
    bent = Counted(((32, 1096.0), (128, 1000.0), (512, 2536.0)), 0)
    # -1 per image up to 128, then 4.
    wanted = {0: 1128, 16: 1112, 32: 1096, 80: 1048, 128: 1000, 256: 1512, 512: 2536, 513: 2540}
    assert {images: bent.traffic(images) for images in wanted} == wanted
    # The outer points are on 1000 + 3 per image.
    assert bent.bend() == pytest.approx(0.384)
    assert line(1000.0, 3.0, 0).bend() == 0


def test_where_scaling_stops(machine):
    """On links that take no time or forever, and where the weights are half of a step."""

    def limits(scheme, link, fixed=0.0):
        device = dataclasses.replace(targets.DEVICES["made up"], link=link)
        scaling.DEVICES["made up"] = device
        one = dataclasses.replace(machine, links=Links(1, 256, 0, ""), alone=line(fixed, 1e9, 0))
        return one.limits(scheme, 128, overlap=False)

    assert limits(DATA, 1e30) == (128, 128)  # An image for each.
    assert limits(DATA, 1e3) == (1, 2)
    # With 128 images 128 + 128, with n devices 128 / n + 128: two are at (256 / 2) / 192.
    assert limits(DATA, 1e30, fixed=128e9) == (1, 8)  # 144 -> 136 saves 6 %.
    assert limits(DATA, 1e30, fixed=1e9) == (32, 128)  # (129 / 32) / (4 + 1).


@pytest.mark.parametrize("scheme", scaling.SCHEMES)
def test_exchange_costs_less_of_slower_devices_and_of_larger_batches(machine, scheme):
    slower = dataclasses.replace(machine, share=0.25)
    wider = dataclasses.replace(machine, links=machine.links._replace(network=1e12))
    for devices in scaling.NUMBERS:
        for overlap in (False, True):
            here = machine.efficiency(scheme, devices, 1024, overlap)
            assert slower.efficiency(scheme, devices, 1024, overlap) >= here
            assert wider.efficiency(scheme, devices, 1024, overlap) >= here
        assert machine.efficiency(scheme, devices, 1024, True) >= machine.efficiency(
            scheme, devices, 1024, False
        )
        smallest = machine.smallest_batch(scheme, devices)
        if smallest is not None and smallest > 32 * devices:
            assert machine.efficiency(scheme, devices, smallest // 2) < scaling.ENOUGH


def test_the_committed_page_is_what_the_committed_counts_give():
    counts = json.loads(scaling.COUNTS.read_text())
    page = scaling.page(counts)
    assert page == (scaling.RESULTS / "scaling.md").read_text()
    assert page.splitlines()[2].startswith("A model, not a measurement")


def test_only_machines_with_every_program_are_shown():
    def programs(kind, images):
        both = [("mesh", 1), ("vmap", 2)]
        return [
            {"target": f"{kind}:4", "placement": placement, "images": n, "traffic": 5 * n}
            | {"operations": n * operations}
            for placement, operations in both
            for n in images
        ]

    some = programs("h100", (512, 32, 128)) + programs("v5e", (32, 128))
    (one,) = scaling.machines(some, share=0.5, width=2)
    assert (one.kind, one.links, one.share, one.width) == ("h100", scaling.MACHINES["h100"], 0.5, 2)
    points = ((32, 160), (128, 640), (512, 2560))
    assert (one.pair, one.alone) == (Counted(points, 1), Counted(points, 2))
