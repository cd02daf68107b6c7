"""The order of the folders: each imports only from those before it, and no modules in a circle."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "alexnet_jax"
FOLDERS = ("config", "model", "parallel", "data", "weights", "training", "analysis", "cli")
"""As in CONTRIBUTING.md; the modules of the package's own folder come before them all."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


NAMES = dict(modules())


def imports(name):
    """Modules of the package that a module imports, inside functions and for types as well."""
    found = set()
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else node.module)
    return found & NAMES.keys()


def folder(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else ""


def rank(name):
    return FOLDERS.index(folder(name)) if folder(name) else -1


# The package's own names and the command come last, whatever their folder.
INSIDE = [name for name in NAMES if name not in ("alexnet_jax", "alexnet_jax.__main__")]


@pytest.mark.parametrize("name", INSIDE)
def test_a_folder_imports_only_from_those_before_it(name):
    late = {other for other in imports(name) if rank(other) > rank(name)}
    assert not late


def test_no_modules_import_each_other_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in imports(name):
            visit(other)
        path.pop()
        done.add(name)

    for name in INSIDE:
        visit(name)


def test_every_module_is_in_a_folder_or_at_the_base():
    base = {name.rpartition(".")[2] for name in NAMES if not folder(name)}
    assert base == {
        "alexnet_jax", "__main__", "cache", "errors", "jsonfiles", "paths", "registry", "templates"
    }  # fmt: skip


def test_the_contributing_page_names_the_folders_in_this_order():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    places = [text.index(f"`{name}/`") for name in FOLDERS]
    assert places == sorted(places)


def test_the_walks_of_the_contributing_page_lead_to_the_right_lines():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    steps = re.findall(r"`(alexnet_jax/[\w/]+\.py):(\d+)` \(`(\w+)`\)", text)
    assert len(steps) >= 20
    for path, line, name in steps:
        text = (PACKAGE.parent / path).read_text().splitlines()[int(line) - 1]
        assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b", text), (path, line, name)
