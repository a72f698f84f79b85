"""Unexpected errors: words for everybody, a traceback only for who asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

_THREAD = """\
import sys, threading
from provisioner.cli import failures
failures.watch_threads()
def fail(): raise ValueError("odd")
thread = threading.Thread(target=fail); thread.start(); thread.join()
"""
_SUMMARY = """\
from provisioner.cli import failures
try: raise ValueError("odd")
except ValueError as error: failures.print_any(error)
"""


@pytest.mark.parametrize("program", [_THREAD, _SUMMARY], ids=["thread", "step"])
@pytest.mark.parametrize("arguments", [[], ["--debug"]], ids=["plain", "debug"])
def test_a_traceback_comes_only_with_debug(program: str, arguments: list[str]) -> None:
    command = [sys.executable, "-c", program, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "internal error: ValueError: odd" in said
    assert ("Traceback" in said) is bool(arguments)


def test_debug_of_the_job_is_not_ours() -> None:
    command = [sys.executable, "-c", _SUMMARY, "run", "--", "python", "--debug"]
    assert "Traceback" not in subprocess.run(command, capture_output=True, text=True, check=True).stderr
