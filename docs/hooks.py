"""What the pages take from the code when they are built: tables, help, figures.

`{{ layers PRESET }}`, `{{ conventions PRESET }}` and `{{ help VERB }}` stand for what `inspect` and
`--help` print now. Pages refer to figures as `../results/...`, which is where they lie for a reader
of the repository; in the site they lie in `results/`.
"""

import re
import runpy
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from alexnet_jax.__main__ import usage
from alexnet_jax.inspect import convention_table, layer_table

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the figures of the results that are in the repository."""
    for path in sorted((ROOT / "results").rglob("*.png")):
        name = str(path.relative_to(ROOT))
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Fills in what stands between braces."""
    del kwargs
    filled = re.sub(r"^\{\{ (\w+) ?(\S*) \}\}$", _fill, markdown, flags=re.M)
    return filled.replace("](../results/", "](results/")


def _fill(match: re.Match[str]) -> str:
    kind, name = match[1], match[2]
    language = "text"  # whose lines stay whole; see extra.css
    if kind == "help":
        text, language = usage(name or None), "output"
    elif kind in ("layers", "conventions"):
        make = runpy.run_path(str(ROOT / "experiments" / "imagenet.py"))["get_config"]
        text = (layer_table if kind == "layers" else convention_table)(make(name))
    else:
        raise PluginError(f"{match[0]}: use layers, conventions or help")
    return f"```{language}\n{text}\n```"
