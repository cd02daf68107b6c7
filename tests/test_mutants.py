"""The table of mutants fits the package: `make mutants` runs it, and this says when to."""

import ast

import pytest

from tests.mutants.run import PACKAGE, ROOT, read
from tests.slow import SLOW

MUTANTS = read()


def test_there_are_many_and_every_module_has_some():
    assert len(MUTANTS) >= 80
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    modules = {
        str(path.relative_to(ROOT / PACKAGE))
        for path in (ROOT / PACKAGE).rglob("*.py")
        if any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert {m.file for m in MUTANTS} == modules


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.what}")
def test_each_still_fits_the_package(mutant):
    text = (ROOT / PACKAGE / mutant.file).read_text()
    changed = mutant.apply(text)
    ast.parse(changed)
    lines = [(a, b) for a, b in zip(text.split("\n"), changed.split("\n"), strict=True) if a != b]
    assert len(lines) == 1
    path, _, name = mutant.test.partition("::")
    functions = [n.name for n in ast.walk(ast.parse((ROOT / path).read_text()))
                 if isinstance(n, ast.FunctionDef)]  # fmt: skip
    assert name.partition("[")[0] in functions
    assert not any(slow in mutant.test for slow in SLOW)
