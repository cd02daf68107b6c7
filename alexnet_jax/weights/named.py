"""The trained networks that come with the package, by name."""

from pathlib import Path

from alexnet_jax.paths import local

FOLDER = Path(__file__).with_name("networks")
"""Of each network `NAME.safetensors`, which `export` wrote, and its model card `NAME.md`."""


def names() -> list[str]:
    """The names, such as `imagenette`."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def located(origin: str | Path) -> Path:
    """Returns where a network is: the file of that name in `FOLDER`, or else the path itself.

    A run in a folder of the same name comes first.

    Args:
      origin: a name, a file of weights or a workdir, as it was typed.

    Raises:
      UsageError: it is empty, or the address of a bucket.
    """
    path = local(str(origin), "the workdir or file")
    if str(origin) in names() and not (path / "config.json").exists():
        return FOLDER / f"{origin}.safetensors"
    return path
