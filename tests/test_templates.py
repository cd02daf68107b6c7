"""Texts that are filled in: what is escaped, and what is missing."""

import sys

import jinja2
import pytest

from alexnet_jax import templates


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "filled" / "templates"
    folder.mkdir(parents=True)
    (tmp_path / "filled" / "__init__.py").touch()
    (folder / "base.txt").write_text("<p>{% block body %}{% endblock %}</p>\n")
    (folder / "page.txt").write_text(
        "{% extends 'base.txt' %}{% block body %}{{ name }}{% endblock %}"
    )
    (folder / "line.txt").write_text("{{ name }}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "filled"
    sys.modules.pop("filled", None)


def test_pages_are_escaped_and_other_texts_are_not(package):
    page = templates.render(package, "page.txt", html=True, name="a < b")
    assert page == "<p>a &lt; b</p>"
    assert templates.render(package, "line.txt", name="a < b") == "a < b\n"


def test_a_value_that_is_missing_is_an_error(package):
    with pytest.raises(jinja2.UndefinedError, match="name"):
        templates.render(package, "line.txt")
