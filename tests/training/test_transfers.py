"""What moves between host and devices while a run trains: by JAX's transfer guard, and counted.

Devices 2 and 3 stand for accelerators, the first of which is JAX's default as on a machine that has
any; device 0 is the host's own. On CPU the guard sees what goes to a device and nothing that comes
from it, so fetches are counted where JAX turns an array of several devices into NumPy's.
"""

import collections

import jax
import pytest
from jax._src.array import ArrayImpl

from alexnet_jax import parallel
from alexnet_jax.training import loop
from tests.support import three_layers

STEPS, EPOCH = 9, 40
SAVED, EVALUATED = (4, 5, 8, 9), (4, 8, 9)
BATCH = [(32,), (32,), (32, 3), (32, 32, 32, 3)]
EVALUATION_BATCH = [(256,), (256,), (256,), (256, 32, 32, 3)]
DROPS = [(2,)]  # the product of the plateau's drops, one per tower
METRICS = [(), (), (), (7,)]  # loss, two errors; whether six gradients and the loss are finite


def plateau_run():
    """Lines at steps 1, 2, 4, 6, 8, 9, of a rate that rises and drops."""
    config = three_layers()
    config.num_epochs = STEPS / EPOCH
    config.log_every_steps, config.checkpoint_every_steps = 2, 5
    config.evaluate.every_epochs = 4 / EPOCH
    config.optimizer.update(schedule="plateau", plateau_patience=1, warmup_epochs=6 / EPOCH)
    return config


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Shapes that were sent and fetched, by the number of steps started; what else was tried."""
    sent, fetched = collections.defaultdict(list), collections.defaultdict(list)
    refused, asked_for = [], []
    devices = jax.devices()[2:4]
    placement = parallel.Placement("pmap", jax.sharding.Mesh([devices], ("data", "tower")))

    def guarded(run, real=loop.loop, get=jax.device_get, value=ArrayImpl._value.fget):
        def counting(put):
            def counted(self, tree):
                sent[run.step].append(sorted(x.shape for x in jax.tree.leaves(tree)))
                with jax.transfer_guard("disallow"):  # explicit transfers are allowed
                    return put(self, tree)

            return counted

        def device_get(x):
            asked_for.append(x)
            try:
                return get(x)
            finally:
                asked_for.pop()

        def to_numpy(array):
            if array.devices() & set(devices):
                fetched[run.step].append(array.shape)
                if not asked_for:
                    refused.append(f"step {run.step}: implicit fetch of {array.shape}")
            return value(array)

        with pytest.MonkeyPatch.context() as patch, jax.transfer_guard("disallow_explicit"):
            for name in ("put_batch", "put_towers"):
                put = getattr(parallel.Placement, name)
                patch.setattr(parallel.Placement, name, counting(put))
            patch.setattr(jax, "device_get", device_get)
            patch.setattr(ArrayImpl, "_value", property(to_numpy))
            try:
                real(run)
            except jax.errors.JaxRuntimeError as error:
                refused.append(str(error))

    with pytest.MonkeyPatch.context() as patch, jax.default_device(devices[0]):
        patch.setattr(loop, "loop", guarded)
        workdir = tmp_path_factory.mktemp("guarded")
        loop.train_and_evaluate(plateau_run(), workdir, placement=placement)
    return sent, fetched, refused


def test_a_step_is_sent_its_batch_and_nothing_else(moved):
    sent, _, refused = moved
    assert refused == []
    for step in range(STEPS + 1):
        # While step k is computed, the batch of step k + 1 is sent.
        expected = [BATCH] * (step < STEPS) + [EVALUATION_BATCH, DROPS] * (step in EVALUATED)
        assert sent[step] == expected, step


def test_of_a_step_its_metrics_are_fetched_once_the_next_was_started(moved):
    """Lines are due at some of these steps too; only a checkpoint is of the step just started."""
    _, fetched, refused = moved
    assert refused == []
    pending = 0
    for step in range(1, STEPS + 1):
        pending += 1
        taken = pending if step in SAVED else pending - 1
        pending -= taken
        metrics, rest = fetched[step][: 4 * taken], fetched[step][4 * taken :]
        assert sorted(metrics) == sorted(METRICS * taken), step
        assert bool(rest) == (step in SAVED), (step, rest)
