"""What a person sees: help, tables, and one line for each mistake."""

import ast
import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from alexnet_jax.analysis import bench, report, study, verify
from alexnet_jax.cli import main as command
from alexnet_jax.cli.arguments import parse, part, steps
from alexnet_jax.cli.main import NOBODY_READS, VERBS, main
from alexnet_jax.config import default
from alexnet_jax.config.find import get_config
from alexnet_jax.data import image_files, inputs, statistics
from alexnet_jax.data import prepare as preparation
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.parallel import agreement
from alexnet_jax.training import api
from alexnet_jax.training import loop as training
from alexnet_jax.training import origin as trained
from tests.support import png_folder, tiny_config

QUICKSTART = "--config=experiments/quickstart.py"


@pytest.mark.parametrize(
    "arguments,names",
    [
        (["trian"], ["trian", "did you mean 'train'"]),
        (["train", QUICKSTART], ["--workdir is missing"]),
        (["train", QUICKSTART, "--wrkdir=x"], ["--wrkdir", "did you mean --workdir"]),
        (["train", "--config=experiments/quikstart.py"], ["experiments/quikstart.py"]),
        (["inspect", "--config=experiments/imagenet.py:papr"], ["'papr'", "paper"]),
        (
            ["inspect", QUICKSTART, "--config.batchsize=3"],
            ["config.batchsize", "config.batch_size?"],
        ),
        (
            ["inspect", QUICKSTART, "--config.model.lrn.enable=False"],
            ["config.model.lrn.enable:", "did you mean config.model.lrn.enabled?"],
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
        (["train", QUICKSTART, "--workdir="], ["--workdir is empty"]),
        (["export", "--workdir=x", "--out=s3://bucket/a.onnx"], ["--out=s3://bucket/a.onnx"]),
        (["fields", "--group=optimiser"], ["optimiser"]),
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


@pytest.mark.parametrize(
    "text,pair",
    [("20:25", (20, 25)), ("7:7", (7, 7)), ("", None), ("0:3", ""), ("3:2", ""), ("3", ""),
     ("1:2:3", ""), ("-1:2", "")],
)  # fmt: skip
def test_the_steps_of_a_trace(text, pair):
    if pair != "":
        assert steps(text) == pair
        return
    with pytest.raises(UsageError, match=f"^--profile={text}: .* such as 20:25$"):
        steps(text)


@pytest.mark.parametrize(
    "text,pair",
    [("1/1", (1, 1)), ("2/3", (2, 3)), ("11/11", (11, 11)), ("0/3", ""), ("4/3", ""), ("1", ""),
     ("a/b", ""), ("1/0", ""), ("1/2/3", "")],
)  # fmt: skip
def test_the_part_of_a_study(text, pair):
    if pair:
        assert part(text) == pair
        return
    with pytest.raises(UsageError, match=f"^--part={text}: .* such as 2/3$"):
        part(text)


def test_images_are_what_is_no_flag():
    names = VERBS["predict"][1]
    flag = parse("predict", names, ["a.jpg", "--workdir=x", "--images=b.jpg", "c d.png"])
    assert flag.images == ["b.jpg", "a.jpg", "c d.png"]
    assert (flag.views, flag.format, flag.step, flag.weights) == ("1", "text", 0, "")
    assert parse("predict", names, ["--format=csv", "--views=9"]).format == "csv"
    inspected = VERBS["inspect"][1]
    assert parse("inspect", inspected, ["--config=quickstart", "--nojson"]).json is False


@pytest.mark.parametrize(
    "typed",
    [
        ["--config=quickstart", "--config.seed=3", "--workdir=x"],
        ["--config.seed=3", "--workdir=x", "--config", "quickstart"],
        ["-config=quickstart", "-config.seed=3", "-workdir=x"],
        ["--config=cifar10", "--config.seed=3", "--workdir=x", "--config=quickstart"],
    ],
)
def test_a_configuration_is_named_anywhere_among_the_flags(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flag = parse("train", VERBS["train"][1], typed)
    assert (flag.config.seed, flag.config.data.source, flag.workdir) == (3, "digits", "x")
    with pytest.raises(UsageError, match=r"^--config is missing; train needs it: NAME"):
        parse("train", VERBS["train"][1], ["--workdir=x", "--config.seed=3"])


@pytest.mark.parametrize(
    "typed,says",
    [
        (["predict", "--views=5"], "--views=5"),
        (["predict", "--step=-1"], "--step=-1"),
        (["evaluate", "--workdir=x", "--split=half"], "--split=half"),
        (["export", "--workdir=x"], "--out is missing; export needs it: The file or folder"),
        (["verify"], "--workdir is missing; verify needs it"),
        (["report", "--folder=x"], "--folder: no such flag of report; it has --workdir, --out"),
        (["predict", "a.jpg"], "give one of --workdir, a run, and --weights, a file"),
        (["predict", "--workdir=x", "--weights=y.onnx", "a.jpg"], "give one of --workdir"),
        (["export", "--workdir=x", "--out=a.txt"], "--out=a.txt: use one of .safetensors, .onnx"),
        (
            ["export", "--workdir=x", "--out=a.py", "--pixels"],
            "--pixels: of an .onnx file, and not of --out=a.py",
        ),
        (["export", "--workdir=x", "--out=a.onnx", "--pixels=1.5"], "--pixels=1.5"),
        (["export", "--workdir=x", "--out=a.safetensors", "--dtype=int8"], "--dtype=int8"),
    ],
)
def test_a_flag_that_does_not_fit_is_named(typed, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").touch()
    assert main(typed) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and err.count("\n") == 1


Q, C = "--config=quickstart", "--config."


@pytest.mark.parametrize(
    "typed,says",
    [
        ([Q, "model.dropout=0.3"], "did you mean --config.model.dropout.rate=0.3?"),
        ([Q, "--model.dropout=0.3"], "did you mean --config.model.dropout.rate=0.3?"),
        ([Q, "--lr=0.1"], "did you mean --config.optimizer.learning_rate=0.1?"),
        ([Q, "--lr", "0.1"], "did you mean --config.optimizer.learning_rate=VALUE?"),
        ([Q, "--batch_size=3"], "did you mean --config.batch_size=3?"),
        ([Q, "--optimizer.momentum=0"], "did you mean --config.optimizer.momentum=0?"),
        ([Q, "config.batch_size=3"], "did you mean --config.batch_size=3?"),
        ([Q, "batch_size=3"], "did you mean --config.batch_size=3?"),
        ([Q, "\u2014exchange"], "did you mean --exchange?"),
        ([Q, "--zzz=3"], "no such flag of inspect; it has --config, --exchange"),
        ([Q, "--exchange=maybe"], "--exchange=maybe: give True or False"),
        ([Q, f"{C}tensorboard=yes"], "--config.tensorboard=yes: give True or False"),
        ([Q, f"{C}model.dropout=0.3"], "a group of fields; give one of them, such as "
         "--config.model.dropout.rate"),
        ([Q, f"{C}model=3"], "--config.model=3: a group of fields"),
        ([Q, f"{C}dropout=0.3"], "did you mean config.model.dropout.rate?"),
        ([Q, f"{C}lr=1"], "did you mean config.optimizer.learning_rate?"),
        ([Q, f"{C}base.batch_size=1"], "did you mean config.batch_size?"),
        ([Q, f"{C}batch_size"], "--config.batch_size: give a value, --config.batch_size=VALUE"),
        ([Q, f"{C}batch_size="], "--config.batch_size=: give a whole number, such as"),
        ([Q, f"{C}batch_size=1e2"], "give a whole number, such as 100"),
        ([Q, f"{C}batch_size=64.0"], "give a whole number, such as 64"),
        ([Q, f"{C}optimizer.learning_rate=0,01"], "give a number, such as 0.01"),
        ([Q, f"{C}=3"], "--config.FIELD=VALUE"),
        ([Q, "imagenet"], "'imagenet': inspect takes flags only"),
        (["quickstart"], "--config is missing; did you mean --config=quickstart?"),
        (["--config=studies/components"], "config is a study, which is many runs: give it to"),
    ],
)  # fmt: skip
def test_what_to_type_instead_is_said(typed, says, capsys):
    assert main(["inspect", *typed]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "typed,says",
    [
        (["evaluate", "D"], "did you mean --workdir=D?"),
        (["evaluate", "--workdir=D", "--config.placement=vmap"], "the configuration is that of"),
        (["evaluate", "--workdir=D", Q], "the configuration is that of the run; it has --workdir"),
        (["evaluate", "--workdir"], "--workdir: give a value, --workdir=VALUE"),
        (["doctor", "--verbose"], "no such flag of doctor; it has no flags"),
        ([Q, "train"], "the verb comes first, python -m alexnet_jax train ..."),
        (["TRAIN"], "did you mean 'train'?"),
    ],
)
def test_what_to_type_instead_is_said_for_other_verbs(typed, says, capsys):
    assert main(typed) == 2
    assert says in capsys.readouterr().err


def test_a_study_is_no_run_in_the_library_either():
    with pytest.raises(UsageError, match="config is a study"):
        training.train_and_evaluate(get_config("studies/components"), "/nowhere")


@pytest.mark.parametrize("started", ["/usr/bin/alexnet-jax", "alexnet-jax.exe", "__main__.py"])
def test_help_names_the_command_that_was_typed(started, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [started])
    command = "python -m alexnet_jax" if started == "__main__.py" else "alexnet-jax"
    for typed in (["--help"], ["train", "--help"]):
        assert main(typed) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: {command} ")
        assert ("python -m" in text) == (started == "__main__.py")


@pytest.fixture
def called(monkeypatch):
    """What a verb calls, in place of the work: a function of a module, with its arguments."""
    calls = []

    def replace(module, name, result=None):
        def record(*given, **named):
            calls.append((*given, named) if named else given)
            return result

        monkeypatch.setattr(module, name, record, raising=False)

    monkeypatch.setattr(trained, "config_of", lambda origin: default())
    replace.calls = calls
    return replace


def test_what_is_typed_reaches_the_work(called, capsys, tmp_path):
    """Each flag in its place, for each verb that hands flags on."""
    network = SimpleNamespace(class_names=(), config=default())
    called(network, "save")
    called(network, "predictions", [])
    called(training, "train_and_evaluate", {"loss": 1})
    called(api, "evaluate_workdir", {"loss": 2})
    called(verify, "verify", verify.Verdict(7, 1, 1, (), ()))
    called(trained, "load", network)
    called(image_files, "image_paths", ["paths"])
    called(bench, "run", "speeds")
    called(bench, "table", "table")
    called(report, "write", "page")
    called(report, "write_runs", "page")

    def of(*typed):
        called.calls.clear()
        assert main(list(typed)) == 0
        capsys.readouterr()
        return called.calls

    ((config, *rest),) = of("train", QUICKSTART, "--workdir=x", "--profile=2:3", "--config.seed=5")
    assert config.seed == 5 and rest == [Path("x"), (2, 3)]
    ((_, *rest),) = of("evaluate", "--workdir=x", "--views=10", "--split=train", "--step=4")
    assert rest == [Path("x"), 10, "train", 4]
    assert of("evaluate", "--weights=imagenette")[0][1] == Path("imagenette")
    ((_, *rest),) = of("verify", "--workdir=x", "--until=7")
    assert rest == [Path("x"), 7]
    where = {"placement": default().placement}
    loaded, written = of("export", "--workdir=x", "--step=4", "--out=a.onnx", "--pixels")
    onnx, half = (Path("a.onnx"), True, "float32"), (Path("a.safetensors"), False, "float16")
    assert loaded == (Path("x"), {"step": 4, **where}) and written == onnx
    loaded, written = of("import", "--weights=b.onnx", "--dtype=float16", "--out=a.safetensors")
    assert loaded == (Path("b.onnx"), {"step": 0, **where}) and written == half
    paths, loaded, asked = of("predict", "--workdir=x", "--views=9", "a.jpg", "b")
    assert paths[0] == ["a.jpg", "b"] and loaded == (Path("x"), {"step": 0, **where})
    assert asked == (["paths"], 9, {})
    (_, *rest), shown = of("bench", QUICKSTART, "--rounds=2", "--steps=3")
    assert rest == [2, 3] and shown == ("speeds",)
    assert of("report", "--workdir=x") == [(Path("x"),)]
    runs, home = [Path("x"), Path("y")], Path("~").expanduser()
    assert of("report", "--workdir=x,y") == [(runs, Path("runs.html"))]
    assert of("report", "--workdir=x,y", "--out=z.html") == [(runs, Path("z.html"))]
    assert of("report", "--workdir=~/x,~/y") == [([home / "x", home / "y"], Path("runs.html"))]
    (tmp_path / "x,y").mkdir()
    assert of("report", f"--workdir={tmp_path}/x,y") == [(tmp_path / "x,y",)]
    assert main(["report", "--workdir=x", "--out=z.html"]) == 2


def test_a_split_that_a_run_does_not_have_is_named(capsys, tmp_path):
    config = tiny_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {"data.validation_fraction": 0.0, "evaluate.splits": ("train",)}
        )
    (tmp_path / "config.json").write_text(config.to_json())
    assert main(["evaluate", f"--workdir={tmp_path}", "--split=validation"]) == 2
    expected = f"error: --split=validation: {tmp_path} has none; it has train, test\n"
    assert capsys.readouterr().err == expected


def test_statistics_are_printed_as_fields_of_a_config(called, capsys, tmp_path):
    found = statistics.Statistics(
        mean_image=np.zeros((2, 2, 3), np.float32),
        channel_mean=np.array([1.23456, 2.0, 3.0]),
        stdevs=np.array([0.5, 0.25, 0.1234567]),
        eigenvectors=np.arange(9.0).reshape(3, 3),
        num_examples=7,
    )
    called(inputs, "keep_statistics", found)
    assert main(["statistics", QUICKSTART, f"--workdir={tmp_path}"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path / 'statistics.npz'}, from 7 images. In a config:"
    fields = {name.strip(): ast.literal_eval(value) for name, value in
              (line.split(" = ") for line in lines)}  # fmt: skip
    assert fields == {
        "data.channel_mean": (1.2346, 2.0, 3.0),
        "data.colour.stdevs": (0.5, 0.25, 0.123457),
        "data.colour.eigenvectors": ((0.0, 1.0, 2.0), (3.0, 4.0, 5.0), (6.0, 7.0, 8.0)),
    }


def test_prepare_writes_both_splits(called, capsys, tmp_path):
    called(preparation, "prepare")
    assert main(["prepare", QUICKSTART, f"--out={tmp_path}"]) == 0
    written = [(source.split, out) for source, _, out, _ in called.calls]
    assert written == [("train", tmp_path / "train"), ("test", tmp_path / "test")]
    show = called.calls[1][3]
    show(200_000, 360_000)
    show(250_000, 360_000)
    show(360_000, 360_000)
    err = capsys.readouterr().err.splitlines()
    assert err == [f"test: {done} of 360000 images" for done in (200_000, 360_000)]


def test_inspect_counts_the_classes_of_a_folder(capsys, tmp_path):
    source = f"--config.data.source=folder:{png_folder(tmp_path, 8)}"
    assert main(["inspect", "--config=experiments/imagenet.py", source]) == 0
    assert re.search(r"^fc8 +8 +8 ", capsys.readouterr().out, re.MULTILINE)


PHOTOS = {"cat/a.jpg": [0.25, 0.75], "dog/b,c.jpg": [0.125, 0.875], "d.jpg": [0.5, 0.5]}


@pytest.mark.parametrize(
    "form,out,err",
    [
        (
            "text",
            "cat/a.jpg     75.0 %  dog   wrong: cat\n"
            "dog/b,c.jpg   87.5 %  dog\n"
            "d.jpg         50.0 %  cat\n"
            "right: 1 of 2 images (50.0 %), by the classes of their folders\n",
            "",
        ),
        (
            "table",
            "cat/a.jpg     75.0 % dog   25.0 % cat   wrong: cat\n"
            "dog/b,c.jpg   87.5 % dog   12.5 % cat\n"
            "d.jpg         50.0 % cat   50.0 % dog\n"
            "right: 1 of 2 images (50.0 %), by the classes of their folders\n",
            "",
        ),
        (
            "csv",
            "image,true_class,class_1,probability_1,class_2,probability_2\n"
            "cat/a.jpg,cat,dog,0.75,cat,0.25\n"
            '"dog/b,c.jpg",dog,dog,0.875,cat,0.125\n'
            "d.jpg,,cat,0.5,dog,0.5\n",
            "right: 1 of 2 images (50.0 %), by the classes of their folders\n",
        ),
    ],
    ids=["text", "table", "csv"],
)
def test_predictions_are_one_line_each(form, out, err, called, capsys):
    rows = [(Path(name), np.array(values, np.float32)) for name, values in PHOTOS.items()]
    config = default()
    config.data.random_flip = False
    network = SimpleNamespace(class_names=("cat", "dog"), config=config)
    called(trained, "load", network)
    called(image_files, "image_paths", [path for path, _ in rows])
    called(network, "predictions", rows)
    assert main(["predict", "--workdir=x", f"--format={form}", "x"]) == 0
    assert capsys.readouterr() == (out, err)
    assert main(["predict", "--workdir=x", f"--format={form}", "--views=10", "x"]) == 0
    note, _, after = capsys.readouterr().err.partition("\n")
    assert note.startswith("note: five of the ten views are mirrored") and after == err


def test_predictions_as_json_are_read_back(called, capsys):
    network = SimpleNamespace(class_names=("n02085936 Maltese dog", "cat"), config=default())
    path = Path("photos/n02085936/a.jpg")
    called(trained, "load", network)
    called(image_files, "image_paths", [path])
    called(network, "predictions", [(path, np.array([0.25, 0.75], np.float32))])
    assert main(["predict", "--workdir=x", "--format=json", "x"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "image": str(path),
        "true_class": "n02085936 Maltese dog",
        "best": [
            {"class": "cat", "probability": 0.75},
            {"class": "n02085936 Maltese dog", "probability": 0.25},
        ],
    }
    assert err == "right: 0 of 1 image (0.0 %), by the class of its folder\n"
    # Of one image alone, text has the five best.
    assert main(["predict", "--workdir=x", "x"]) == 0
    assert capsys.readouterr().out == (
        f"{path}   wrong: Maltese dog\n   75.0 %  cat\n   25.0 %  Maltese dog\n"
        "right: 0 of 1 image (0.0 %), by the class of its folder\n"
    )


def test_a_difference_that_verify_finds_is_exit_code_4(called, capsys):
    verdict = verify.Verdict(7, 1, 1, ("step 3",), ())
    called(verify, "verify", verdict)
    assert main(["verify", "--workdir=x"]) == 4
    assert capsys.readouterr().out == verdict.text() + "\n"
    called(verify, "verify", dataclasses.replace(verdict, differences=()))
    assert main(["verify", "--workdir=x"]) == 0


def test_a_study_runs_its_part_and_says_what_failed(called, capsys, tmp_path):
    typed = ["study", "--config=experiments/studies/components.py", f"--workdir={tmp_path}"]
    called(study, "write", "the table")
    called(study, "run", ["base, seed 0: why"])
    assert main([*typed, "--part=2/3"]) == 5
    assert called.calls[0][1:] == (tmp_path, (2, 3))
    out, err = capsys.readouterr()
    wrote = ", ".join(str(tmp_path / name) for name in ("table.md", "table.csv", "figure.png"))
    assert (out, err) == (f"the table\nwrote {wrote}\n", "failed: base, seed 0: why\n")
    called(study, "run", [])
    assert main(typed) == 0
    assert called.calls[2][1:] == (tmp_path, (1, 1))
    called.calls.clear()
    assert main([*typed, "--table_only"]) == 0
    assert [given[1:] for given in called.calls] == [(tmp_path,)]  # `write` alone


@pytest.mark.parametrize("signal,code", [(2, 130), (15, 143)])
def test_a_signal_is_told_by_the_exit_code(signal, code, monkeypatch, capsys):
    def stop(*_):
        raise Stopped(40, signal)

    monkeypatch.setattr(training, "train_and_evaluate", stop)
    assert main(["train", QUICKSTART, "--workdir=x"]) == code
    assert "step 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error,code,text",
    [
        (
            jax.errors.JaxRuntimeError("UNAVAILABLE: peer is gone\nand more"), 3,
            "(UNAVAILABLE: peer is gone); start all of them again",
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1, "Traceback"),
        (KeyError("bug"), 1, "KeyError: 'bug'"),
        (UsageError("the disk is full"), 2, "error: the disk is full"),
    ],
)  # fmt: skip
def test_one_of_several_that_fails_ends_at_once(error, code, text, monkeypatch, capsys):
    """An ordinary exit would wait for the others; one process alone leaves in the usual way."""

    def fail(*_):
        raise error

    def leave(code, alone):
        assert alone == (code == 3)
        raise SystemExit(code)

    monkeypatch.setattr(training, "train_and_evaluate", fail)
    monkeypatch.setattr(command, "_start", lambda config: None)
    monkeypatch.setattr(agreement, "leave", leave)
    typed = ["train", QUICKSTART, "--workdir=x"]
    if isinstance(error, UsageError):
        assert main(typed) == 2
    else:
        with pytest.raises(type(error)):
            main(typed)
    capsys.readouterr()
    monkeypatch.setattr(agreement, "processes", lambda: 2)
    with pytest.raises(SystemExit) as exit:
        main(typed)
    assert exit.value.code == code and text in capsys.readouterr().err


def test_no_verb_is_a_mistake_and_help_is_none(capsys):
    assert main([]) == 2
    assert main(["help"]) == main(["-h"]) == main(["--help"]) == 0
    assert capsys.readouterr().out.count("usage:") == 4


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


def test_a_fresh_process_gets_two_devices_and_leaves_no_backend_behind(tmp_path):
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
        "XDG_CACHE_HOME": str(tmp_path),
    }
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f"{tmp_path}/alexnet_jax", "pmap, 2 cpu devices"]


def test_bench_measures_the_digits(capsys):
    arguments = ["bench", QUICKSTART, "--config.batch_size=16", "--rounds=1", "--steps=1"]
    assert main([*arguments, "--config.placement=vmap"]) == 0
    text = capsys.readouterr().out
    assert "vmap, 1 cpu device; batch 16" in text
    names = ("first step", "training step", "forward alone", "training from data", "input alone")
    for name in (*names, "peak memory"):
        assert len(re.findall(rf"^  {name}.* \d+\.?\d* ", text, re.MULTILINE)) == 1, name


def test_a_current_folder_that_is_gone_is_one_line(monkeypatch, capsys):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    monkeypatch.setattr(sys, "argv", ["alexnet-jax", "fields"])
    assert main() == 2
    assert capsys.readouterr() == (
        "", "error: the current folder has been removed: change to another\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    "error,owner,heard",
    [
        (RuntimeError("Event loop is closed"), None, False),
        (AttributeError("_ssock"), asyncio.BaseEventLoop.__del__, False),
        (AttributeError("_ssock"), None, True),
        (ValueError("anything else"), test_the_part_of_a_study, True),
    ],
)
def test_only_what_event_loops_leave_behind_is_kept_from_the_user(error, owner, heard, monkeypatch):
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    command._quiet_libraries()
    sys.unraisablehook(SimpleNamespace(exc_value=error, object=owner))
    assert bool(found) is heard
