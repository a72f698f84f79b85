"""Fixtures of the tests that run the command line as real processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.box import Box
from tests.tools import require


@pytest.fixture
def box() -> Iterator[Box]:
    require("git")
    made = Box(Path(tempfile.mkdtemp(prefix="gr-")))  # a short path: names of sockets may have 107 bytes
    try:
        yield made
    finally:
        made.close()
