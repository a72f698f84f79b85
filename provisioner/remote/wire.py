"""What uploads and downloads share: the program on the machine, and going on after a drop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from provisioner.errors import ConfigError, GpuRunnerError, TransientError
from provisioner.remote import tarstream
from provisioner.remote.link import Link
from provisioner.remote.session import RemoteProcess, Session

T = TypeVar("T")

_PROGRAM = "~/.gpu-runner/bin/tarstream.py"
_INSTALL = 'd="$HOME/.gpu-runner/bin"; umask 077; mkdir -p "$d" && cat >"$d/.t$$" && mv -f "$d/.t$$" "$d/tarstream.py"'
_NO_FILE_STATUS = 2
_NO_PYTHON_STATUS = 127
_ATTEMPTS = 5
_FIRST_WAIT_S = 0.1
_END_TIMEOUT_S = 30.0


class TransferError(TransientError):
    """A stream was cut or damaged."""


class NotInstalled(Exception):  # noqa: N818 - a signal between functions
    """The machine does not have this version's program."""


def install(session: Session) -> None:
    """Put this version's program on the machine; transfers do it where it is missing.

    Args:
        session: To the machine.

    Raises:
        GpuRunnerError: It cannot be written there.
    """
    done = session.run(f"sh -c '{_INSTALL}'", stdin=_program(), timeout_s=60)
    if done.exit_status != 0:
        raise GpuRunnerError(
            "cannot write to the login's home on the machine",
            details=done.stderr.decode("utf-8", "replace").strip(),
        )


def start(session: Session, verb: str, request: dict[str, Any]) -> RemoteProcess:
    """Start the program on the machine and hand it its request.

    Args:
        session: To the machine.
        verb: ``pack`` or ``unpack``.
        request: What it is to do.

    Returns:
        The running program; should it be missing, ``why_ended`` tells.
    """
    digest = hashlib.sha256(_program()).hexdigest()
    process = session.open(f"python3 -I -S {_PROGRAM} {verb} {digest}")
    process.write(json.dumps(request, separators=(",", ":")).encode("ascii") + b"\n")
    return process


def why_ended(process: RemoteProcess, cause: Exception) -> Exception:
    """Why the program on the machine ended before its work did.

    Args:
        process: The program; its output has ended.
        cause: What was noticed here.

    Returns:
        The error to raise.
    """
    status = process.exit_status(_END_TIMEOUT_S)
    said = process.stderr_tail.decode("utf-8", "replace").strip()
    if status == tarstream.STALE_STATUS or (status == _NO_FILE_STATUS and "tarstream.py" in said):
        return NotInstalled()
    if status == _NO_PYTHON_STATUS:
        return ConfigError(
            "the machine has no python3", details=said, resolution="use an image with Python 3.8 or newer"
        )
    return TransferError(
        "a transfer was cut off", details=f"{cause}; exit status {status}; {said[-2000:]}".rstrip("; ")
    )


def with_retries(link: Link, attempt: Callable[[Session], T], files_done: Callable[[], int]) -> T:
    """Call again after each transient failure, until several in a row got no file further.

    Args:
        link: Where sessions come from.
        attempt: Does what is left to do.
        files_done: How many files are done so far.

    Returns:
        What the attempt returned.

    Raises:
        TransferError: Too many failures in a row.
        MachineLostError: The machine cannot be reached any more.
    """
    failures = 0
    while True:
        before = files_done()
        try:
            return _installed(link.session(), attempt)
        except TransientError as error:
            failures = failures + 1 if files_done() == before else 1
            if failures >= _ATTEMPTS:
                raise TransferError("a transfer kept failing", details=f"{error.brief}: {error.details}") from error
        link.pause(_FIRST_WAIT_S * 2**failures)


def _installed(session: Session, attempt: Callable[[Session], T]) -> T:
    try:
        return attempt(session)
    except NotInstalled:
        install(session)
    try:
        return attempt(session)
    except NotInstalled as error:
        raise GpuRunnerError(f"the machine does not keep {_PROGRAM}") from error


@cache
def _program() -> bytes:
    return Path(tarstream.__file__).read_bytes()
