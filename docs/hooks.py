"""What the pages take from the code when they are built: tables, help, figures, the API.

`{{ layers PRESET }}`, `{{ conventions PRESET }}`, `{{ help VERB }}` and `{{ fields }}` stand for
what `inspect`, `--help` and `fields` print now, `{{ api }}` for a section per module, `{{ source
FILE }}` for a module itself, `{{ notebook FILE }}` for the cells of a notebook. Pages refer to
figures as `../results/...`, which is where a reader of the repository finds them; in the site they
are in `results/`.
"""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from alexnet_jax.analysis.inspect import convention_table, field_table, layer_table
from alexnet_jax.cli.main import usage

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


FOLDERS = ("", "config", "model", "parallel", "data", "data.sources", "weights", "training",
           "training.optimizers", "training.parts", "analysis", "cli")  # fmt: skip


def _modules() -> Iterator[str]:
    """A section for every module that has a docstring, folder by folder."""
    for folder in FOLDERS:
        place = ROOT / "alexnet_jax" / folder.replace(".", "/")
        for path in sorted(place.glob("*.py")):
            if path.stem.startswith("__") and not (folder == "config" and path.stem == "__init__"):
                continue
            stem = "" if path.stem == "__init__" else path.stem
            name = ".".join(part for part in ("alexnet_jax", folder, stem) if part)
            options = "{show_root_heading: false, heading_level: 3}"
            yield f"## {name}\n\n::: {name}\n    options: {options}\n"


def _cells(name: str) -> Iterator[str]:
    """The cells of a notebook of this folder as Markdown; it is not run."""
    for cell in json.loads((ROOT / "docs" / name).read_text())["cells"]:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```" if cell["cell_type"] == "code" else text


def _fill(match: re.Match[str]) -> str:
    kind, name = match[1], match[2]
    if kind == "api":
        return "\n".join(_modules())
    if kind == "fields":
        return field_table(markdown=True)
    if kind == "notebook":
        return "\n\n".join(_cells(name))
    language = "text"  # whose lines stay whole; see extra.css
    if kind == "source":
        text, language = (ROOT / "alexnet_jax" / name).read_text().rstrip(), "python"
    elif kind == "help":
        text, language = usage(name or None), "output"
    elif kind in ("layers", "conventions"):
        make = runpy.run_path(str(ROOT / "experiments" / "imagenet.py"))["get_config"]
        text = (layer_table if kind == "layers" else convention_table)(make(name))
    else:
        known = "layers, conventions, help, fields, source, notebook or api"
        raise PluginError(f"{match[0]}: use {known}")
    return f"```{language}\n{text}\n```"
