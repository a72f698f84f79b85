"""What the pipeline tells whoever watches; ``cli`` turns it into lines, bars and log groups."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Called from several threads; must not block for long and must not raise."""

    def step(self, name: str, detail: str = "") -> None:
        """A step begins.

        Args:
            name: ``place``, ``boot``, ``upload``, ``run``, ``collect`` or ``release``.
            detail: What it works on.
        """
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def warning(self, text: str) -> None:
        """Something that the user should look at."""
        ...

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """How far the current step's transfer is; the total is None when it is not known."""
        ...

    def log(self, chunk: bytes) -> None:
        """Raw bytes of the job's log, in order, each byte once."""
        ...
