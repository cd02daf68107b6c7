"""Headless Chromium and axe-core: what is wrong with a page on a screen and on a phone."""

import html
import json
import re
from pathlib import Path

import pytest

from docs.screenshots import CHROMIUM, chromium, frame

FRAMES = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
"""Widths in pixels and colour schemes in which a page is looked at."""

_AXE = Path(__file__).parents[1] / ".axe" / "axe.min.js"

# What is wrong with the layout, then what axe finds: violations, and texts whose contrast it cannot
# measure, except single characters and those on a bar that ends below them: other texts stand on a
# whole bar, or beside it.
_CHECKS = """addEventListener("load", async () => {
const found = [], near = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > near) found.push("the page scrolls sideways");
for (const image of document.images)
  if (!image.complete || !image.naturalWidth) found.push("an image does not load");
for (const parent of document.querySelectorAll("body, main, main div")) {
  const boxes = [...parent.children].map(c => [c, c.getBoundingClientRect()])
    .filter(([c, b]) => b.width && b.height && getComputedStyle(c).position != "absolute");
  for (const [c, b] of boxes) {
    if (b.left < -1 || b.right > near + 1) found.push("cut: " + c.outerHTML.slice(0, 80));
    for (const [d, e] of boxes)
      if (c != d && b.left < e.right - 1 && e.left < b.right - 1 && b.top < e.bottom - 1
          && e.top < b.bottom - 1) found.push("overlap: " + c.outerHTML.slice(0, 80));
  }
}
for (const box of document.querySelectorAll(near < 500 ? ".scroll, pre" : ".scroll"))
  if (box.scrollWidth > box.clientWidth + 1)
    found.push("only a part is shown of: " + box.textContent.slice(0, 80));
for (const cell of document.querySelectorAll("td, th, p, li, h1, h2, h3, h4, figcaption"))
  if (cell.scrollWidth > cell.clientWidth + 1 && !cell.closest("pre"))
    found.push("text leaves its box: " + cell.textContent.slice(0, 80));
const {violations, incomplete} = await axe.run();
const unclear = incomplete.filter(rule => rule.id == "color-contrast");
for (const {id, nodes} of [...violations, ...unclear])
  for (const {html, any, failureSummary} of nodes)
    if (!["elmPartiallyObscured", "shortTextContent"].includes(any[0]?.data?.messageKey))
      found.push(id + ": " + html.slice(0, 80) + " " + failureSummary);
const scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
parent.done([near, scheme], found);
});"""


def wrong(page: Path, folder: Path) -> list[str]:
    """What is wrong with a page, each finding with the width and the scheme where it is seen.

    The test is skipped where Chromium or axe-core is missing.

    Args:
      page: the HTML file, which refers to no other.
      folder: an empty folder for Chromium.
    """
    if not (CHROMIUM and _AXE.exists()):
        pytest.skip("no axe-core: run make .axe/axe.min.js" if CHROMIUM else "no Chromium")
    scripts = f"<script>{_AXE.read_text()}</script><script>{_CHECKS}</script></body>"
    text = page.read_text().replace("</body>", scripts)
    frames = "".join(frame(text, width, 900, scheme) for width, scheme in FRAMES)
    probe = folder / "probe.html"
    probe.write_text(
        "<!doctype html><meta charset=utf-8><body><pre></pre><script>const all = [];"
        "function done(frame, found) { all.push([frame, found]);"
        'document.querySelector("pre").textContent = JSON.stringify(all); }</script>' + frames
    )
    printed = chromium(probe, folder, "--dump-dom")
    (result,) = re.findall(r"<pre>(.*?)</pre>", printed, flags=re.S)
    seen = json.loads(html.unescape(result))
    assert sorted(where for where, _ in seen) == sorted(map(list, FRAMES))
    return [f"{width} {scheme}: {line}" for (width, scheme), found in seen for line in found]
