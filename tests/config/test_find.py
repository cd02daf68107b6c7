"""Configurations by name, from anywhere, and what is said of a name that is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from alexnet_jax.config import find, leaves
from alexnet_jax.errors import UsageError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMES = sorted(
    str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in EXPERIMENTS.rglob("*.py")
)


def test_the_names_are_those_of_the_files():
    assert find.names() == NAMES and {"quickstart", "studies/components"} < set(NAMES)
    assert all(find.find(name).samefile(EXPERIMENTS / f"{name}.py") for name in NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "finetune"])
def test_every_configuration_is_made_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = find.get_config(name)
    assert isinstance(config, ConfigDict)
    assert dict(leaves(config)) == dict(leaves(find.get_config(EXPERIMENTS / f"{name}.py")))


def test_what_stands_behind_the_colon_reaches_the_file():
    assert find.get_config("large_batch:4096").batch_size == 4096
    assert find.get_config("imagenet:caffe").data.crop_size == 227
    with pytest.raises(UsageError, match="'papr'"):
        find.get_config("imagenet:papr")
    with pytest.raises(UsageError, match=r"^--config=quickstart:fast: takes nothing behind"):
        find.get_config("quickstart:fast")


def test_a_file_that_exists_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "quickstart"
    own.mkdir()  # A folder is no configuration.
    assert find.find("quickstart") != Path("quickstart")
    text = "from alexnet_jax.config import default\ndef get_config(n='3'):\n    c = default()\n"
    (tmp_path / "mine.py").write_text(text + "    c.seed = int(n)\n    return c\n")
    assert find.get_config("mine.py").seed == 3
    assert find.get_config(f"{tmp_path}/mine.py:8").seed == 8


@pytest.mark.parametrize(
    "name,says",
    [
        ("quikstart", "did you mean quickstart?"),
        ("experiments/quickstart.py", "did you mean quickstart?"),
        ("imagent.py:source", "did you mean imagenet?"),
        ("componets", "did you mean studies/components?"),
        ("zzz", f"there are {', '.join(NAMES)}"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_or_with_all(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        find.get_config(name)
    assert says in str(error.value) and f"--config={name.partition(':')[0]}:" in str(error.value)


@pytest.mark.parametrize(
    "text,says",
    [
        ("x = 1", "has no function get_config"),
        ("def get_config(): return 3", "returns a int, not a ConfigDict"),
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError: .*nothing_of_this_name"),
        ("def get_config():\n    raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
def test_an_error_in_a_file_is_one_line(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"^--config={path}: .*{says}") as error:
        find.get_config(path)
    assert "\n" not in str(error.value)
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UsageError, match="not a Python file"):
        find.get_config(tmp_path / "mine.txt")


def test_an_installed_package_holds_its_own(tmp_path, monkeypatch):
    package = tmp_path / "alexnet_jax"
    monkeypatch.setattr(find, "__file__", str(package / "config" / "find.py"))
    assert find.folder() == tmp_path / "experiments"
    (package / "experiments").mkdir(parents=True)
    assert find.folder() == package / "experiments"


def test_names_are_found_without_starting_a_library():
    code = (
        "import sys; from alexnet_jax.config import find; find.names();"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WHOLE = "from alexnet_jax.config import default\ndef get_config(): return default()\n"


@pytest.mark.parametrize(
    "spec,text,says",
    [
        ("a.py", "def get_config(:", "SyntaxError: invalid syntax (a.py, line 1)"),
        ("a.py", "\tx\n  y", "IndentationError"),
        ("a.py", "def get_config(): return {'seed': 1}", "returns a dict, not a ConfigDict"),
        ("a.py", "def get_config(): pass", "returns a NoneType, not a ConfigDict"),
        ("a.py", "def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("a.py", "import nonesuch", "ModuleNotFoundError: No module named 'nonesuch'"),
        ("a.py", "import sys; sys.exit('bye')", "SystemExit: bye"),
        ("a.py", "", "has no function get_config()"),
        ("a.py", "get_config = 3", "has no function get_config()"),
        ("a.py:b", WHOLE, "--config=a.py:b: takes nothing behind a colon: --config=a.py"),
        ("a.py", "def get_config(x): pass", "needs a preset or the like behind a colon"),
        ("c:d/a.py:b", WHOLE, "--config=c:d/a.py:b: takes nothing behind a colon"),
        ("a", WHOLE, "did you mean a.py?"),
        ("b", WHOLE, "--config=b: not a Python file, whose name ends with .py"),
        ("c:d", WHOLE, "--config=c: no such file"),
        ("c:d/none.py", WHOLE, "--config=c: no such file"),
        ("e", WHOLE, "--config=e: a folder"),
        ("quickstart:", WHOLE, "takes nothing behind a colon"),
    ],
)
def test_a_file_with_a_mistake_is_one_line(tmp_path, monkeypatch, spec, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c:d").mkdir()
    (tmp_path / "e").mkdir()
    for name in ("a.py", "b", "c:d/a.py"):
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        find.get_config(spec)
    assert str(error.value).startswith("--config") and "\n" not in str(error.value)


def test_a_path_with_colons_is_a_file_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c:d").mkdir()
    text = "from alexnet_jax.config import default\ndef get_config(n='3'):\n    c = default()\n"
    (tmp_path / "c:d" / "a:b.py").write_text(text + "    c.seed = len(n)\n    return c\n")
    assert find.get_config("c:d/a:b.py").seed == 1
    assert find.get_config("c:d/a:b.py:x:y").seed == 3
    (tmp_path / "c:d" / "a:b.py:y.py").write_text(text + "    c.seed = 77\n    return c\n")
    assert find.get_config("c:d/a:b.py:y.py").seed == 77
