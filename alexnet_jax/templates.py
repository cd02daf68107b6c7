"""Texts that are filled in: pages, a model card, a module of Python."""

from importlib import resources
from typing import Any

import jinja2


def render(package: str, name: str, /, *, html: bool = False, **values: Any) -> str:
    """Fills in a template of Jinja.

    Args:
      package: the package whose folder `templates` holds it, and those that it extends.
      name: of its file.
      html: whether values are escaped for HTML.
      **values: what stands in it by name; one that is missing is an error.
    """
    folder = resources.files(package) / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: (folder / file).read_text("utf-8")),
        autoescape=html, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=not html,
    )  # fmt: skip
    return environment.get_template(name).render(**values)
