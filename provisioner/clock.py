"""The one place that reads time and waits; everything else is handed a Clock.

Deadlines are measured on a clock that no one can set and that counts suspended time (CLOCK_BOOTTIME on Linux,
clock_gettime(2)); wall-clock time is for people and for names only.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """What the rest of the code may know about time."""

    def elapsed_s(self) -> float:
        """Seconds on a clock that never jumps and that runs through suspend; its zero is arbitrary (boot)."""
        ...

    def utc(self) -> datetime:
        """The wall clock, timezone-aware, for display and records only."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set or the time is over.

        Args:
            event: What to wait for.
            timeout_s: Longest wait in seconds; 0 and less return at once.

        Returns:
            Whether the event is set.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Wait, whatever happens; prefer ``wait`` with a cancel event."""
        ...


class SystemClock:
    """The real clock."""

    _CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def elapsed_s(self) -> float:
        """See Clock."""
        return time.clock_gettime(self._CLOCK_ID)

    def utc(self) -> datetime:
        """See Clock."""
        return datetime.now(tz=timezone.utc)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """See Clock."""
        return event.wait(max(0.0, timeout_s))

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        time.sleep(max(0.0, seconds))


@dataclass(frozen=True)
class Deadline:
    """A moment on a clock's ``elapsed_s`` scale.

    Attributes:
        clock: The clock it is measured on.
        at_s: The moment, in that clock's seconds.
    """

    clock: Clock
    at_s: float

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        """A deadline so many seconds from now."""
        return cls(clock, clock.elapsed_s() + seconds)

    def remaining_s(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at_s - self.clock.elapsed_s()

    def passed(self) -> bool:
        """Whether it has passed."""
        return self.remaining_s() <= 0

    def earliest(self, other: Deadline | None) -> Deadline:
        """The one of the two that comes first."""
        return self if other is None or self.at_s <= other.at_s else other
