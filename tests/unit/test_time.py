"""Nobody but the clock reads time or waits."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.clock import Deadline, SystemClock
from tests.fakes import FakeClock

PACKAGE = Path(__file__).parents[2] / "provisioner"
NOT_FOR_OTHERS = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "sleep", "perf_counter", "clock_gettime", "localtime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


def readings(path: Path) -> Iterator[str]:
    """Where a module reads time by itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if node.attr in NOT_FOR_OTHERS.get(name, ()):
                yield f"{path.name}:{node.lineno} {name}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield f"{path.name}:{node.lineno} from time"


def test_only_the_clock_reads_time() -> None:
    elsewhere = {"clock.py", "tarstream.py"}  # the second runs on machines too, alone, and compares with their files
    modules = [path for path in PACKAGE.rglob("*.py") if path.name not in elsewhere and "_templates" not in path.parts]
    assert len(modules) > 50
    assert [where for path in modules for where in readings(path)] == []
    assert [*readings(PACKAGE / "clock.py")], "the search finds what there is to find"


def test_a_deadline_does_not_see_the_wall_clock() -> None:
    clock = FakeClock()
    deadline = Deadline.after(clock, 60)
    clock.set_wall(3600)
    assert deadline.remaining_s() == 60
    clock.set_wall(-7200)
    clock.advance(59)
    assert not deadline.passed()
    clock.advance(1)
    assert deadline.passed()
    assert deadline.earliest(None) is deadline
    assert deadline.earliest(Deadline.after(clock, -5)).remaining_s() == -5


def test_the_real_clock() -> None:
    clock = SystemClock()
    before_s, at = clock.elapsed_s(), clock.utc()
    event = threading.Event()
    assert not clock.wait(event, 0.02)
    clock.sleep(-1)
    assert 0.015 < clock.elapsed_s() - before_s < 5
    assert at.utcoffset() is not None
    assert (clock.utc() - at).total_seconds() == pytest.approx(clock.elapsed_s() - before_s, abs=1)
    event.set()
    assert clock.wait(event, 1000)
