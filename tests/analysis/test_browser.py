"""The pages in a browser, on a screen and a phone: layout, contrast, what a screen reader gets."""

import shutil

import pytest

from alexnet_jax.analysis import report
from tests import browser
from tests.analysis.test_explain import folder, written  # noqa: F401  (fixtures)
from tests.analysis.test_report import run, study_folder  # noqa: F401  (fixtures)


def of_two_runs(workdir, place):
    again = shutil.copytree(workdir, place / "again")
    return report.write_runs([workdir, again], place / "runs.html")


PAGES = {
    "run": lambda get: get("run")[0] / "a run" / "report.html",
    "runs": lambda get: of_two_runs(get("run")[0] / "a run", get("tmp_path")),
    "study": lambda get: report.write(get("study_folder")),
    "explain": lambda get: get("written") and get("folder") / "run" / "explain.html",
}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(name, request, tmp_path):
    assert browser.wrong(PAGES[name](request.getfixturevalue), tmp_path) == []


BODY = "<main><h1>A page</h1><div class=row><p>One</p><p>Two</p></div></main>"
DARK = "@media (prefers-color-scheme: dark) { body { background: #222; color: %s; } }"
WIDE = "<p style='width: 900px'>x</p>"


@pytest.mark.parametrize(
    "body,style,frames,what",
    [(BODY, DARK % "#ddd", 0, ""),
     (BODY, DARK % "#555", 2, "color-contrast: "),
     (BODY, "p { color: #aaa; }", 4, "color-contrast: "),
     (BODY.replace("</h1>", "</h1>" + WIDE), "", 2, "the page scrolls sideways"),
     (BODY, "p + p { margin-top: -3em; }", 4, "overlap: <p>"),
     (BODY.replace("<p>", "<p style='height: 2em; width: 9px; white-space: nowrap'>"), "", 4,
      "text leaves its box: One"),
     (BODY.replace("Two", f"<div class=scroll tabindex=0 style='overflow: auto'>{WIDE}</div>"), "",
      2, "only a part is shown of: x"),
     (BODY.replace("Two", "<img src=missing.png>"), "", 4, "image-alt: "),
     (BODY.replace("Two", "<img alt=x src=missing.png>"), "", 4, "an image does not load")],
)  # fmt: skip
def test_what_is_wrong_is_found_where_it_is_seen(body, style, frames, what, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><html lang=en><head><title>A page</title><style>{style}</style></head>"
        f"<body>{body}</body></html>"
    )
    found = browser.wrong(page, tmp_path)
    assert len({line.partition(":")[0] for line in found if what in line}) == frames
    assert what or not found
