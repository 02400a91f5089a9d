"""The files that come with the code: two projects, the pictures of one of them, and the weights for it."""

from pathlib import Path

_package = Path(__file__).resolve().parent
# `pip install` puts them into the package (pyproject.toml says so); in a checkout they lie beside it.
_folder = _package if (_package / "projects").is_dir() else _package.parent

PROJECTS = _folder / "projects"
SHAPES_PICTURES = PROJECTS / "shapes"
SHAPES_WEIGHTS = _folder / "weights" / "efficientdet-d0_shapes.pth"
