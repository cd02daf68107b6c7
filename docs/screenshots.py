"""Takes the screenshots in `docs/pictures/` of the two pages that the quickstart ends with.

After `make quickstart`: `python docs/screenshots.py runs/quickstart`. A test takes them again and
compares them with the files (`tests/analysis/test_browser.py`).
"""

import dataclasses
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "pictures"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
"""The browser; empty if there is none."""

CELL = 32
"""Side in pixels of the squares whose mean luminance `difference` compares."""
TOLERANCE = 1.5
"""Largest `difference` of two pictures of the same page: of 255, the file's own losses included."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """A picture of the beginning of a page.

    Attributes:
      page: the name of the file in the folder of the quickstart.
      width: in pixels.
      height: in pixels.
      scheme: `light` or `dark`.
    """

    page: str
    width: int
    height: int
    scheme: str


SCREENS = {
    "report": Screen("report.html", 1280, 1100, "light"),
    "report-phone": Screen("report.html", 390, 844, "dark"),
    "explain": Screen("photograph.html", 1280, 1100, "light"),
    "explain-phone": Screen("photograph.html", 390, 844, "dark"),
}
"""The pictures by their names."""


def chromium(page: Path, folder: Path, *flags: str) -> str:
    """Opens a page in Chromium without a window, and returns what it prints.

    Args:
      page: an HTML file.
      folder: for its profile.
      *flags: what it is to do.
    """
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-background-networking", "--virtual-time-budget=60000",
         f"--user-data-dir={folder / 'profile'}", *flags, f"file://{page}"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return done.stdout


def frame(text: str, width: int, height: int, scheme: str) -> str:
    """A page in a frame.

    A window of Chromium is never as narrow as a phone, and a frame has the colour scheme of its
    element.
    """
    style = f"width: {width}px; height: {height}px; border: 0; color-scheme: {scheme}"
    return f'<iframe style="{style}" srcdoc="{html.escape(text)}"></iframe>'


def taken(page: Path, screen: Screen) -> Image.Image:
    """The picture of a page, RGB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = frame(page.read_text(), screen.width, screen.height, screen.scheme)
        (folder / "page.html").write_text(f'<!doctype html><body style="margin: 0">{content}')
        chromium(
            folder / "page.html", folder, f"--screenshot={folder / 'screen.png'}",
            f"--window-size={max(screen.width, 600)},{screen.height + 200}",  # cut off below
        )  # fmt: skip
        with Image.open(folder / "screen.png") as image:
            return image.convert("RGB").crop((0, 0, screen.width, screen.height))


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean over squares of the absolute difference in mean luminance, from 0 to 255.

    It is below 1 if text is only drawn with another smoothing or a few digits differ, and above 2
    if a line is added or everything moves by 8 pixels.

    Args:
      one: a picture.
      other: another of the same size.
    """
    shape = (one.width // CELL, one.height // CELL)
    cells = [
        np.asarray(image.convert("L").resize(shape, Image.Resampling.BOX), float)
        for image in (one, other)
    ]
    return float(np.abs(cells[0] - cells[1]).mean())


def main(folder: Path) -> None:
    """Writes all pictures of the pages in a folder."""
    if not CHROMIUM:
        sys.exit("error: there is no chromium, chromium-browser or google-chrome")
    for name, screen in SCREENS.items():
        picture = taken(folder / screen.page, screen)
        picture.save(FOLDER / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
