"""What a person sees: help, tables, and one line for each mistake."""

import os
import re
import subprocess
import sys

import pytest

from alexnet_jax.__main__ import NOBODY_READS, VERBS, main

QUICKSTART = "--config=experiments/quickstart.py"


@pytest.mark.parametrize(
    "arguments,names",
    [
        (["trian"], ["trian", "did you mean 'train'"]),
        (["train", QUICKSTART], ["--workdir is missing"]),
        (["train", QUICKSTART, "--wrkdir=x"], ["--wrkdir", "did you mean --workdir"]),
        (["train", "--config=experiments/quikstart.py"], ["experiments/quikstart.py"]),
        (["inspect", "--config=experiments/imagenet.py:papr"], ["'papr'", "paper"]),
        (["inspect", QUICKSTART, "--config.batchsize=3"], ["config.batchsize", "'batch_size'"]),
        (
            ["inspect", QUICKSTART, "--config.model.lrn.enable=False"],
            ["config.model.lrn.enable", "did you mean 'enabled'"],
        ),
        (["inspect", QUICKSTART, "--config.batch_size=many"], ["config.batch_size", "many"]),
        (["inspect", QUICKSTART, "--config.model.activation=rely"], ["'relu'"]),
        (["inspect", QUICKSTART, "extra"], ["extra"]),
        (
            ["train", QUICKSTART, "--workdir=/proc/nowhere", "--config.placement=vmap"],
            ["--workdir=/proc/nowhere"],
        ),
        (
            ["train", QUICKSTART, "--workdir=x", "--config.model.num_classes=11"],
            ["config.model.num_classes = 11", "10 classes"],
        ),
        (
            ["train", QUICKSTART, "--workdir=x", "--config.batch_size=65"],
            ["config.batch_size = 65", "multiple of 4"],
        ),
        (
            ["train", QUICKSTART, "--workdir=x", "--config.data.source=tfds:caltech101"],
            ["caltech101", "tfds.load"],
        ),
        (["train", QUICKSTART, "--workdir=x", "--profile=9:5"], ["--profile=9:5", "20:25"]),
        (["bench", QUICKSTART, "--rounds=0"], ["--rounds=0", "positive"]),
        (["evaluate", "--workdir=/nonexistent"], ["/nonexistent"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, names, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path}/run") for a in arguments]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    for name in names:
        assert name in err


def test_help_names_every_verb_and_flag(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (_, flags, example) in VERBS.items():
        assert verb in text
        assert main([verb, "--help"]) == 0
        own = capsys.readouterr().out
        assert example in own and all(f"--{flag}" in own for flag in flags)


@pytest.mark.parametrize("closed", [("stdout",), ("stdout", "stderr")])
def test_whoever_has_read_enough_is_no_error(closed):
    """As in `inspect ... | head -1`: the reader is gone before the last line."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "alexnet_jax", "inspect", "--config=experiments/imagenet.py"]
    pipes = {"stderr": subprocess.PIPE} | dict.fromkeys(closed, writer)
    process = subprocess.run(command, **pipes)
    os.close(writer)
    assert process.returncode == NOBODY_READS and not process.stderr


def test_inspect_prints_the_layers(capsys):
    assert main(["inspect", "--config=experiments/imagenet.py"]) == 0
    text = capsys.readouterr().out
    assert "60,965,224" in text and "724,406,816" in text and "256 x 5x5x48" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_fresh_process_gets_two_devices_and_leaves_no_backend_behind():
    """The default on a CPU host is a real split over two devices; help starts nothing."""
    code = (
        "import sys, alexnet_jax, alexnet_jax.__main__ as m; m.main(['--help']);"
        "assert not {'jax', 'tensorflow'} & set(sys.modules), 'heavy import';"
        "from alexnet_jax import parallel; from alexnet_jax.config import default;"
        "parallel.prepare_host(default());"
        "import jax; print(jax.config.jax_compilation_cache_dir);"
        "print(parallel.place(default()).describe())"
    )
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": "/some/where",
    }
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["/some/where/alexnet_jax", "pmap, 2 cpu devices"]


def test_bench_measures_the_digits(capsys):
    arguments = ["bench", QUICKSTART, "--config.batch_size=16", "--rounds=1", "--steps=1"]
    assert main([*arguments, "--config.placement=vmap"]) == 0
    text = capsys.readouterr().out
    assert "vmap, 1 cpu device; batch 16" in text
    names = ("first step", "training step", "forward alone", "training from data", "input alone")
    for name in (*names, "peak memory"):
        assert len(re.findall(rf"^  {name}.* \d+\.?\d* ", text, re.MULTILINE)) == 1, name
