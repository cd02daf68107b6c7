"""The pages in a browser, on a screen and a phone: layout, contrast, what a screen reader gets."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from alexnet_jax.analysis import report
from docs import screenshots
from tests import browser
from tests.analysis.test_explain import folder, written  # noqa: F401  (fixtures)
from tests.analysis.test_report import run, study_folder  # noqa: F401  (fixtures)


def of_two_runs(workdir, place):
    again = shutil.copytree(workdir, place / "again")
    return report.write_runs([workdir, again], place / "runs.html")


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folder of the pages that `make quickstart` ends with, by its own commands."""
    place = tmp_path_factory.mktemp("place")
    (place / "docs").symlink_to(ROOT / "docs")
    done = subprocess.run(
        ["make", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # As a user's process, without the eight devices of the tests.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    for line in done.stdout.splitlines():
        if " -m alexnet_jax " in line:
            words = [sys.executable, *shlex.split(line)[1:]]
            subprocess.run(words, cwd=place, env=environment | {"PYTHONPATH": ROOT}, check=True)
    return place / "runs" / "quickstart"


PAGES = {
    "quickstart": lambda get: get("quickstart") / "report.html",
    "photograph": lambda get: get("quickstart") / "photograph.html",
    "run": lambda get: get("run")[0] / "a run" / "report.html",
    "runs": lambda get: of_two_runs(get("run")[0] / "a run", get("tmp_path")),
    "study": lambda get: report.write(get("study_folder")),
    "explain": lambda get: get("written") and get("folder") / "run" / "explain.html",
}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(name, request, tmp_path):
    assert browser.wrong(PAGES[name](request.getfixturevalue), tmp_path) == []


in_chromium = pytest.mark.skipif(not screenshots.CHROMIUM, reason="no Chromium")


@in_chromium
@pytest.mark.parametrize("name", screenshots.SCREENS)
def test_the_docs_show_the_pages_as_they_are(name, quickstart):
    screen = screenshots.SCREENS[name]
    path = screenshots.FOLDER / f"{name}.webp"
    now = screenshots.taken(quickstart / screen.page, screen)
    with Image.open(path) as image:
        shown = image.convert("RGB")
    assert shown.size == now.size == (screen.width, screen.height)
    assert path.stat().st_size <= 150_000
    assert screenshots.difference(shown, now) < screenshots.TOLERANCE, (
        f"{path.name} shows another page: make quickstart; "
        "python docs/screenshots.py runs/quickstart; look at it, and commit it"
    )


@in_chromium
@pytest.mark.parametrize(
    "style,differs",
    [("body { text-rendering: geometricPrecision; }", False),
     ("main { margin-top: 8px; }", True),
     ("h1::after { content: ' and a line more'; display: block; }", True),
     ("nav { display: none; }", True),
     ("body { line-height: 1.7; }", True),
     ("body { background: #333; }", True)],
)  # fmt: skip
def test_a_page_that_changed_is_noticed_and_another_smoothing_is_not(
    style, differs, request, tmp_path
):
    screen = screenshots.Screen("", 600, 800, "light")
    text = PAGES["run"](request.getfixturevalue).read_text()
    pictures = []
    for number, more in enumerate(("", style)):
        page = tmp_path / f"{number}.html"
        page.write_text(text.replace("</head>", f"<style>{more}</style></head>"))
        pictures.append(screenshots.taken(page, screen))
    assert (screenshots.difference(*pictures) > screenshots.TOLERANCE) == differs


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
