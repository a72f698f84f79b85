"""A request to end early, and how hard: shared by everything that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from provisioner.errors import CancelledError, ExitCode


@dataclass(frozen=True)
class CancelReason:
    """Who asked.

    Attributes:
        text: For people, as ``interrupted (Ctrl-C)``.
        exit_code: What the process will answer.
    """

    text: str
    exit_code: ExitCode


class Cancel:
    """Two events in one: *soft* stops the work and brings artifacts home, *hard* goes straight to the release.

    The release itself listens to neither.
    """

    def __init__(self) -> None:
        self.soft = threading.Event()
        self.hard = threading.Event()
        self.reason: CancelReason | None = None
        self._lock = threading.Lock()
        self._on_soft: list[Callable[[], None]] = []
        self._on_hard: list[Callable[[], None]] = []

    def request(self, reason: CancelReason, *, hard: bool = False) -> None:
        """Ask for the end; the first reason stays, a later call may only make it harder.

        Args:
            reason: Who asks.
            hard: Whether to give up the artifacts that are not home yet.
        """
        with self._lock:
            self.reason = self.reason or reason
            actions = [] if self.soft.is_set() else list(self._on_soft)
            self.soft.set()
            if hard and not self.hard.is_set():
                self.hard.set()
                actions += self._on_hard
        for action in actions:
            action()

    def when_soft(self, action: Callable[[], None]) -> None:
        """Call this once an end is asked for (at once, if it has been)."""
        self._register(self._on_soft, self.soft, action)

    def when_hard(self, action: Callable[[], None]) -> None:
        """Call this once everything but the release is given up (at once, if it has been)."""
        self._register(self._on_hard, self.hard, action)

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            CancelledError: If an end was asked for.
        """
        if self.soft.is_set():
            raise self.error()

    def error(self) -> CancelledError:
        """The error that tells who asked."""
        reason = self.reason or CancelReason("cancelled", ExitCode.TERMINATED)
        return CancelledError(reason.text, exit_code=reason.exit_code)

    def _register(self, actions: list[Callable[[], None]], event: threading.Event, action: Callable[[], None]) -> None:
        with self._lock:
            actions.append(action)
            late = event.is_set()
        if late:
            action()
