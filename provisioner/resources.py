"""Where the files of ``templates/`` are: inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


@cache
def template_path(name: str) -> Path:
    """Path of a template.

    Args:
        name: File name below ``templates/``.

    Returns:
        The path; it exists.

    Raises:
        FileNotFoundError: If no such template ships.
    """
    for folder in (_PACKAGE / "_templates", _PACKAGE.parent / "templates"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"template {name} is missing from the installation")
