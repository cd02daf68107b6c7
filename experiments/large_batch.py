"""The full network in large batches, for 8 devices and more.

    python -m alexnet_jax train --config=large_batch:4096 --workdir=runs/4096

None of these has been trained in this project. The errors below are those that the authors report,
for networks that differ slightly.

    1024   One weird trick (Krizhevsky 2014, arXiv:1404.5997): the learning rate is proportional to
           the batch size and is divided by 250 ** (1/3) after each quarter of the run. Its
           single-column network reached 43.28 % top-1 error with batches of 1024 on 8 GPUs, and
           42.33 % with 128 on one.
    4096   LARS (You, Gitman and Ginsburg 2017, arXiv:1708.03888), with which the authors reached
    8192   8K "without loss in accuracy". The constants are those of one of the authors for BVLC's
           network: borisgin/nvcaffe, models/bvlc_alexnet/solver.prototxt and solver_8K.prototxt
           (learning rate 10, trust coefficient 0.001, polynomial decay with power 2, 100 epochs,
           warm-up over 1,250 steps of 4096). For 8192 the original clips the trust ratio and has no
           warm-up; the configuration here warms up as for 4096.

If a batch does not fit into memory, `--config.accumulate_steps=N` processes it in N parts.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import presets
from alexnet_jax.errors import UsageError


def get_config(batch_size: str = "1024") -> ConfigDict:
    """The configuration for batches of 1024, 4096 or 8192."""
    if batch_size not in ("1024", "4096", "8192"):
        raise UsageError(f"batch {batch_size!r}: use one of 1024, 4096, 8192")
    config = presets.get("170" if batch_size == "1024" else "caffe")
    config.batch_size = int(batch_size)
    config.evaluate.batch_size = 1024
    config.model.layers.fc6.exchange = "partial_sums"  # 2,048 instead of 4,608 values per image
    if batch_size == "1024":
        config.num_epochs = 90.0
        config.optimizer.update(rate_scaling="linear", rate_scaling_batch=128)
    else:
        config.num_epochs = 100.0
        config.optimizer.update(
            learning_rate=10.0,
            trust_coefficient=0.001,
            warmup_epochs=4.0,
            schedule="polynomial",
            polynomial_power=2.0,
            bias_rate_multiplier=0.001,  # no trust ratio scales the learning rate of biases
        )
    return config
