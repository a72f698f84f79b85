"""Doubles of the outside world that are ours to define: time."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone

_EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeClock:
    """A clock that moves only when told to, or by exactly what is waited for.

    Args:
        auto: Whether a wait moves the clock and returns at once; otherwise it blocks until somebody calls ``advance``.
    """

    def __init__(self, *, auto: bool = True) -> None:
        self._auto = auto
        self._now_s = 1000.0
        self._wall_offset_s = 0.0
        self._moved = threading.Condition()
        self.waits_s: list[float] = []

    def elapsed_s(self) -> float:
        with self._moved:
            return self._now_s

    def utc(self) -> datetime:
        with self._moved:
            return _EPOCH + timedelta(seconds=self._now_s + self._wall_offset_s)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._moved:
            self._now_s += seconds
            self._moved.notify_all()

    def set_wall(self, jump_s: float) -> None:
        """Set the wall clock wrong; elapsed time does not notice."""
        self._wall_offset_s += jump_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits_s.append(timeout_s)
        if self._auto:
            if not event.is_set() and timeout_s > 0:
                self.advance(timeout_s)
                time.sleep(0)  # other threads get their turn
            return event.is_set()
        end_s = self.elapsed_s() + timeout_s
        while not event.is_set() and self.elapsed_s() < end_s:
            with self._moved:
                self._moved.wait(0.01)  # an event has no way to tell a condition
        return event.is_set()

    def sleep(self, seconds: float) -> None:
        self.wait(threading.Event(), seconds)
