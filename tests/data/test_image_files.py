"""Which files are meant by names of files, folders and patterns."""

import pytest

from alexnet_jax.data import image_files
from alexnet_jax.errors import UsageError


def test_folders_files_and_patterns_name_images_in_the_order_given(tmp_path):
    for name in ("x/2.png", "x/deep/er/1.JPEG", "x/1.bmp", "x/notes.txt", "y/b.jpg", "y/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*arguments):
        paths = image_files.image_paths(str(tmp_path / argument) for argument in arguments)
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found("x") == ["x/1.bmp", "x/2.png", "x/deep/er/1.JPEG"]
    assert found("y/b.jpg", "x/*.png", "y") == ["y/b.jpg", "x/2.png", "y/a.jpg", "y/b.jpg"]
    assert found("y/*.jpg") == ["y/a.jpg", "y/b.jpg"]
    assert found("**/*.JPEG") == ["x/deep/er/1.JPEG"]
    assert found("x/notes.txt") == ["x/notes.txt"]  # whoever names a file means it
    (tmp_path / "empty").mkdir()
    for argument, says in (
        ("empty", "holds no images"),
        ("none", "no such file"),
        ("*.gif", "no "),
    ):
        with pytest.raises(UsageError, match=f"{argument.lstrip('*')}: {says}"):
            found("x", argument)
    with pytest.raises(UsageError, match="no images: name files"):
        image_files.image_paths([])


@pytest.mark.parametrize(
    "pattern", ["**", "**/*", "**/*.png", "a/**", "*", "**/a/*", "[ab]/**/*.png"]
)
def test_links_in_circles_end(tmp_path, pattern):
    """Each image is found where it lies, and each name that is found leads to an image."""
    images = {tmp_path / folder / "x.png" for folder in ("a", "b", "a/deep")}
    for path in images:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for number, folder in enumerate((".", "a", "b", "a/deep")):
        (tmp_path / folder / f"up{number}").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / folder / f"here{number}").symlink_to(".", target_is_directory=True)
    found = image_files.image_paths([str(tmp_path / pattern)])
    below = {path for path in images if "**/a" not in pattern or path.parent.name == "a"}
    below = {path for path in below if not pattern.startswith("a") or "a" in path.parent.parts}
    assert below <= set(found) and len(set(found)) == len(found)
    assert {path.resolve() for path in found} <= {path.resolve() for path in images}
