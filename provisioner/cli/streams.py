"""Where words go: straight to a file descriptor, and nowhere if nobody is there to read them."""

from __future__ import annotations

import contextlib
import json
import os

STDOUT, STDERR = 1, 2


def write_all(fd: int, data: bytes) -> None:
    """Write everything, unbuffered: a thread that is stuck here holds no lock that the exit needs.

    Args:
        fd: Where to.
        data: What.

    Raises:
        OSError: As os.write.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def tell(text: str) -> None:
    """A line for a person, on stderr; a terminal that has gone changes neither the work nor its exit code.

    Args:
        text: The line, or several.
    """
    with contextlib.suppress(OSError):
        write_all(STDERR, f"{text}\n".encode("utf-8", "backslashreplace"))


def print_document(document: object) -> bool:
    """The document of ``--json``, on stdout; a reader that has gone changes no exit code.

    Args:
        document: What ``json`` can write.

    Returns:
        Whether it could be written, as far as anybody wanted it.
    """
    try:
        write_all(STDOUT, json.dumps(document, indent=2).encode("ascii") + b"\n")
    except BrokenPipeError:
        return True
    except OSError as error:
        tell(f"error: the document could not be written to stdout: {error.strerror}")
        return False
    return True
