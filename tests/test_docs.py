"""What the documents promise is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_row_of_the_fault_table_names_tests_that_exist():
    inside, count = False, 0
    for row in (ROOT / "docs" / "faults.md").read_text().splitlines():
        if row.startswith("| fault"):
            inside = row.endswith("| test |")
            file = None
        elif inside and row.startswith("| "):
            last = row.strip("| ").split("|")[-1].strip()
            names = re.findall(r"`([\w/]*(?:\.py|::)[\w.:]*)`", last)
            assert names or (last == "the same" and file), row
            for name in names:
                path, _, function = name.partition("::")
                file = ROOT / "tests" / path if path else file
                assert file.is_file(), name
                assert not function or f"def {function}(" in file.read_text(), name
            count += 1
        elif not row.startswith("|"):
            inside = False
    assert count >= 30


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_public_names_are_those_that_type_checkers_see_and_lead_somewhere():
    import alexnet_jax

    tree = ast.parse((ROOT / "alexnet_jax" / "__init__.py").read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("alexnet_jax.")
        for alias in node.names
    }
    assert seen.keys() == set(alexnet_jax.__all__)
    for name, module in seen.items():
        assert getattr(alexnet_jax, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = alexnet_jax.nothing
