"""Points at which something leaves the controller process, named alike from run to run."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_NONCE = re.compile(r"(?<![0-9a-z])[0-9a-f]{8,}(?![0-9a-z])|(?<=incoming-)\w+")
_NUMBER = re.compile(r"\d+")


class Moment(str, enum.Enum):
    """Before it leaves, or after it had its effect and before its answer is used."""

    BEFORE = "before"
    AFTER = "after"

    __str__ = str.__str__


@dataclass(frozen=True)
class Point:
    """One effect. Threads run beside each other, so the ordinal counts within the thread and the target.

    Attributes:
        thread: Name of the thread, without numbers.
        kind: What kind of effect: ``rename``, ``start``, ``exec``, ``http`` ...
        target: What it acts on, without what changes from run to run.
        ordinal: 1 for the first of this kind on this target in this thread.
    """

    thread: str
    kind: str
    target: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.thread}: {self.kind} {self.target} #{self.ordinal}"


class Trap:
    """Names each point that is passed, and tells a spring of it.

    Args:
        spring: Called at each point and moment; it may kill the process.
    """

    def __init__(self, spring: Callable[[Point, Moment], object]) -> None:
        self._spring = spring
        self._passed: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def arrive(self, kind: str, target: str) -> Point:
        """An effect is about to leave."""
        key = (_NUMBER.sub("*", threading.current_thread().name), kind, target)
        with self._lock:
            self._passed[key] += 1
            point = Point(*key, self._passed[key])
        self._spring(point, Moment.BEFORE)
        return point

    def leave(self, point: Point) -> None:
        """It had its effect."""
        self._spring(point, Moment.AFTER)

    @contextlib.contextmanager
    def effect(self, kind: str, target: str) -> Iterator[None]:
        """Around one effect; one that failed had none."""
        point = self.arrive(kind, target)
        yield
        self.leave(point)


@dataclass(frozen=True)
class Territory:
    """The folders whose changes count: what lies elsewhere is no business of ours.

    Attributes:
        folders: Real paths by short name; the first that fits counts.
        lease_id: Shown as LEASE.
    """

    folders: Mapping[str, str]
    lease_id: str

    def name(self, path: str | bytes | os.PathLike[str] | int, dir_fd: int | None = None) -> str | None:
        """Our name of a path; None when it lies elsewhere."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = f"{Path(f'/proc/self/fd/{dir_fd}').readlink()}/{text}"
        text = os.path.abspath(text)  # noqa: PTH100 - links are left as they are
        for short, folder in self.folders.items():
            if text == folder or text.startswith(f"{folder}/"):
                return self.plain(short + text[len(folder) :])
        return self.plain(text[text.index("gpu-runner-") :]) if text.startswith("/sys/fs/cgroup/") else None

    def plain(self, text: str) -> str:
        """A text without what changes from run to run."""
        return _NONCE.sub("*", text.replace(self.lease_id, "LEASE") if self.lease_id else text)
