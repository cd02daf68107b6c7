"""What the documents promise is there."""

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
