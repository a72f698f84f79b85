"""What the tests need from the host: external tools and other Python versions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_EXTRA_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def in_ci() -> bool:
    """Whether a missing tool is a failure: on CI nothing may go untested in silence."""
    return os.environ.get("CI", "").lower() in {"true", "1"}


def missing(what: str) -> None:
    """Skip with a stated reason, or fail on CI."""
    reason = f"{what} is not installed here"
    if in_ci():
        pytest.fail(f"{reason}, and CI=true allows no skips", pytrace=False)
    pytest.skip(reason)


def require(tool: str) -> str:
    """The path of a tool; without it the test is skipped, or fails on CI."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_FOLDERS))
    path = shutil.which(tool, path=folders)
    if path is None:
        missing(tool)
        raise AssertionError
    return path


def find_python(version: str) -> str:
    """The interpreter of a Python version like ``3.8``: on PATH, or among those of pyenv."""
    for candidate in _pythons(version):
        if candidate.is_file() and os.access(candidate, os.X_OK) and "shims" not in candidate.parts:
            return str(candidate)
    missing(f"Python {version}")
    raise AssertionError


def _pythons(version: str) -> list[Path]:
    on_path = shutil.which(f"python{version}")
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    builds = sorted((home / "versions").glob(f"{version}*/bin/python{version}"), reverse=True)
    return [Path(on_path), *builds] if on_path else builds
