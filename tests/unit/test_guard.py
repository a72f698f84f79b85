"""The guard's decisions, as tables and as properties; no time passes here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.resources import template_path
from tests.tools import find_python

sys.path.insert(0, str(template_path("guard.py").parent))
import guard  # the machine's side is no part of the package

CREATED_S = 5000.0
LIMITS = guard.Limits(
    hard_s=1000.0, fuse_s=60.0, heartbeat_timeout_s=30.0, idle_timeout_s=100.0, on_controller_loss=guard.END
)
BEAT = (1, 2, 3)
RUNNING = guard.Job("running", "one")
ENDED = guard.Job("ended", "one")
GUARD_FILE = Path(guard.__file__)


def state(**changes: Any) -> guard.State:
    return guard.first_state(LIMITS, CREATED_S, CREATED_S)._replace(**changes)


def attached(**changes: Any) -> guard.State:
    return state(**({"beat": BEAT, "seen_s": CREATED_S} | changes))


def finish(**changes: Any) -> guard.State:
    return attached(**({"limits": LIMITS._replace(on_controller_loss=guard.FINISH)} | changes))


def at(age_s: float) -> float:
    return CREATED_S + age_s


def verdict(before: guard.State, readings: guard.Readings, age_s: float) -> str:
    """First word of the reason, or ``stays``."""
    after = guard.advance(before, readings, at(age_s))
    reason = guard.decide(after, readings, at(age_s))
    return "stays" if reason is None else reason.split(":")[0]


SESSION = guard.Readings(sessions=1)
BEATING = guard.Readings(beat=BEAT, sessions=1)
TABLE = [
    # what happened before, what is read, at which age, what follows
    ("fresh", state(), guard.Readings(), 59.9, "stays"),
    ("nobody came", state(), guard.Readings(), 60.0, "fuse"),
    ("a session without heartbeat is no controller", state(), SESSION, 60.0, "fuse"),
    ("first beat just in time", state(), BEATING, 60.0, "stays"),
    ("first order just in time", state(), guard.Readings(order=guard.Order(1)), 60.0, "stays"),
    ("beat stopped a while ago", attached(), BEATING, 29.9, "stays"),
    ("beat stopped", attached(), BEATING, 30.0, "controller lost"),
    ("beat stopped, job runs", attached(), BEATING._replace(job=RUNNING), 30.0, "controller lost"),
    ("beat changed", attached(), BEATING._replace(beat=(2, 2, 3)), 30.0, "stays"),
    ("beat file vanished", attached(), SESSION, 30.0, "controller lost"),
    ("finish: job runs on", finish(), guard.Readings(beat=BEAT, job=RUNNING), 999.0, "stays"),
    ("finish: results wait", finish(), guard.Readings(beat=BEAT, job=ENDED), 999.0, "stays"),
    ("finish: results wait until the end", finish(), guard.Readings(beat=BEAT, job=ENDED), 1000.0, "hard deadline"),
    ("finish: lost job's results wait", finish(), guard.Readings(job=guard.Job("lost", "one")), 999.0, "stays"),
    ("finish: nothing to finish", finish(), guard.Readings(beat=BEAT), 100.0, "idle"),
    ("detached: no beats expected", attached(mode=guard.DETACHED), guard.Readings(job=RUNNING), 500.0, "stays"),
    ("detached: results wait", attached(mode=guard.DETACHED), guard.Readings(job=ENDED), 500.0, "stays"),
    ("detached: idle", attached(mode=guard.DETACHED), guard.Readings(), 100.0, "idle"),
    ("collected: idle", attached(mode=guard.DETACHED, collected="one"), guard.Readings(job=ENDED), 100.0, "idle"),
    (
        "collected, then another job",
        finish(collected="one"),
        guard.Readings(job=guard.Job("ended", "two")),
        500.0,
        "stays",
    ),
    ("idle, but somebody is logged in", attached(mode=guard.DETACHED), SESSION, 500.0, "stays"),
    ("soft deadline ahead", attached(soft_at_s=at(10.0)), BEATING, 9.9, "stays"),
    ("soft deadline", attached(soft_at_s=at(10.0)), BEATING._replace(job=RUNNING), 10.0, "soft deadline"),
    ("hard deadline", attached(seen_s=at(999.0)), BEATING._replace(job=RUNNING), 1000.0, "hard deadline"),
    ("hard deadline beats all", state(), guard.Readings(asked="x"), 5000.0, "hard deadline"),
    ("asked", attached(), BEATING._replace(asked="SIGTERM"), 1.0, "asked to end"),
]


@pytest.mark.parametrize(
    ("before", "readings", "age_s", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_table(before: guard.State, readings: guard.Readings, age_s: float, expected: str) -> None:
    assert verdict(before, readings, age_s) == expected


def test_an_order_acts_once() -> None:
    order = guard.Readings(order=guard.Order(seq=1, end_in_s=10.0))
    first = guard.advance(attached(), order, at(5))
    again = guard.advance(first, order, at(8))
    assert first.soft_at_s == again.soft_at_s == at(15)
    moved = guard.advance(again, guard.Readings(order=guard.Order(seq=2, end_in_s=50.0)), at(9))
    assert moved.soft_at_s == at(59)
    kept = guard.advance(moved, guard.Readings(order=guard.Order(seq=3, mode=guard.DETACHED)), at(10))
    assert (kept.soft_at_s, kept.mode) == (at(59), guard.DETACHED)


def test_a_new_controller_may_count_its_orders_from_one_again() -> None:
    first = guard.advance(attached(), guard.Readings(order=guard.Order(seq=7, mode=guard.DETACHED)), at(1))
    second = guard.advance(first, guard.Readings(order=guard.Order(seq=1, mode=guard.ATTACHED)), at(200))
    assert second.mode == guard.ATTACHED
    assert guard.decide(second, guard.Readings(), at(229)) is None
    assert (guard.decide(second, guard.Readings(), at(230)) or "").startswith("controller lost")


def test_results_of_a_running_job_cannot_be_collected() -> None:
    readings = guard.Readings(job=RUNNING, order=guard.Order(seq=1, mode=guard.DETACHED, collected=True))
    after = guard.advance(attached(), readings, at(1))
    later = guard.advance(after, readings._replace(job=ENDED), at(900))
    assert guard.decide(later, guard.Readings(job=ENDED), at(950)) is None


moments = st.floats(min_value=0, max_value=5000, allow_nan=False)
jobs = st.builds(guard.Job, st.sampled_from(["none", "running", "ended", "lost"]), st.sampled_from(["", "one", "two"]))
orders = st.builds(
    guard.Order,
    st.integers(),
    st.sampled_from([None, guard.ATTACHED, guard.DETACHED]),
    st.none() | st.floats(min_value=0, allow_infinity=False, allow_nan=False),
    st.booleans(),
)
beats = st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
readings_of_all_kinds = st.builds(
    guard.Readings, beats, st.none() | orders, jobs, st.integers(0, 3), st.sampled_from(["", "x"])
)
limits_of_all_kinds = st.builds(
    guard.Limits, moments, moments, moments, moments, st.sampled_from([guard.END, guard.FINISH])
)


@given(limits_of_all_kinds, st.lists(st.tuples(moments, readings_of_all_kinds), min_size=1, max_size=20))
def test_whatever_happens_the_hard_deadline_ends_it(
    limits: guard.Limits, story: list[tuple[float, guard.Readings]]
) -> None:
    remembered = guard.first_state(limits, CREATED_S, CREATED_S)
    now_s = CREATED_S
    for pause_s, readings in story:
        now_s += pause_s
        remembered = guard.advance(remembered, readings, now_s)
        reason = guard.decide(remembered, readings, now_s)
        assert remembered.hard_at_s == CREATED_S + limits.hard_s
        assert remembered.soft_at_s is None or remembered.soft_at_s <= remembered.hard_at_s
        assert (now_s < remembered.hard_at_s) or reason is not None
        assert remembered.busy_s <= now_s
        if remembered.seen_s is None:
            assert now_s - CREATED_S < limits.fuse_s or reason is not None
        assert 0 < guard.next_look_s(remembered, now_s) <= 0.5


@given(limits_of_all_kinds, readings_of_all_kinds, moments)
def test_a_running_job_of_a_living_controller_is_left_alone(
    limits: guard.Limits, readings: guard.Readings, age_s: float
) -> None:
    limits = limits._replace(hard_s=age_s + 1, heartbeat_timeout_s=limits.heartbeat_timeout_s + 1, idle_timeout_s=1.0)
    before = guard.first_state(limits, CREATED_S, CREATED_S)._replace(seen_s=at(age_s))
    now = readings._replace(job=RUNNING, asked="", order=None)
    assert guard.decide(guard.advance(before, now, at(age_s)), now, at(age_s)) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["seq", "mode", "end_in_s", "collected"]), inner)
        ),
    )
)
def test_any_order_file_is_survived(document: Any) -> None:
    path = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"orders-{os.getpid()}.json"  # noqa: S108  # rewritten each time
    path.write_text(json.dumps(document))
    try:
        order = guard.read_order(str(path))
    finally:
        path.unlink()
    if order is not None:
        after = guard.advance(attached(), guard.Readings(order=order), at(1))
        assert after.soft_at_s is None or at(1) <= after.soft_at_s <= after.hard_at_s
        assert after.mode in {guard.ATTACHED, guard.DETACHED}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'{"seq": true}', b"[" * 100000])
def test_a_broken_order_file_is_no_order(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "orders.json").write_bytes(content)
    assert guard.read_order(str(tmp_path / "orders.json")) is None


class Host:
    """A guard in a folder, on a clock moved by hand."""

    def __init__(self, home: Path, limits: guard.Limits = LIMITS) -> None:
        self.home = home
        self.now_s = CREATED_S
        self.sessions = 0
        self.ended: list[str] = []
        self.control = home / ".gpu-runner" / "guard"
        self.job = home / ".gpu-runner" / "job"
        self.control.mkdir(parents=True)
        self.job.mkdir(parents=True)
        self.guard = guard.Guard(
            str(home),
            limits,
            CREATED_S,
            ending=self.ended.append,
            sessions=lambda: self.sessions,
            clock=lambda: self.now_s,
        )

    def step(self, after_s: float = 0.0) -> str | None:
        self.now_s += after_s
        return self.guard.step()

    def status(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.control / "status.json").read_text())
        return data

    def order(self, **order: Any) -> None:
        (self.control / "orders.json").write_text(json.dumps(order))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_status_says_what_the_guard_knows(host: Host) -> None:
    host.step(1.0)
    assert host.status() == {
        "state": "armed",
        "reason": "",
        "mode": "attached",
        "orders_seq": 0,
        "elapsed_s": 1.0,
        "hard_in_s": 999.0,
        "soft_in_s": None,
        "controller_seen_s": None,
        "pid": os.getpid(),
        "idle_s": 1.0,
    }
    (host.control / "beat").write_text("1\n")
    host.step(2.0)
    host.order(seq=4, mode="detached", end_in_s=20, collected=False)
    host.step(0.1)
    told = host.status()
    assert (told["orders_seq"], told["mode"], told["soft_in_s"], told["controller_seen_s"]) == (
        4,
        "detached",
        20.0,
        0.0,
    )
    assert "soft" in (host.step(20.0) or "")
    assert host.status()["state"] == "ending"


def test_a_beat_is_any_change_of_the_file_and_no_clock_of_the_file_system(host: Host) -> None:
    beat = host.control / "beat"
    beat.write_text("1\n")
    os.utime(beat, (0, 0))
    host.step(1.0)
    beat.write_text("2\n")
    os.utime(beat, (4e9, 4e9))
    host.step(29.0)
    assert host.step(29.0) is None
    assert "controller lost" in (host.step(1.0) or "")


def test_run_ends_the_machine_once_with_the_reason(host: Host) -> None:
    def pause(seconds: float) -> None:
        assert 0 < seconds <= 0.5
        host.now_s += seconds

    host.guard.run(pause)
    assert len(host.ended) == 1
    assert host.ended[0].startswith("fuse")
    assert CREATED_S + 60 <= host.now_s < CREATED_S + 60.1


def test_it_ends_the_machine_when_nothing_can_be_written(host: Host, tmp_path: Path) -> None:
    (tmp_path / ".gpu-runner" / "guard" / "status.json").mkdir()  # as good as a full disk: the rename fails
    host.guard.run(lambda seconds: setattr(host, "now_s", host.now_s + seconds))
    assert len(host.ended) == 1
    assert list(host.control.iterdir()) == [host.control / "status.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_console_without_room_stops_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guard; guard._say('x');"
        "guard.Guard(sys.argv[2], guard.Limits(0.2, 9, 9, 9), guard.boottime_s(), ending=lambda why: sys.exit(7),"
        " sessions=lambda: 0).run()"
    )
    (tmp_path / ".gpu-runner").write_text("a file where a folder should be")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, str(GUARD_FILE.parent), str(tmp_path)],
            stderr=full,
            check=False,
            timeout=20,
        )
    assert done.returncode == 7


def test_the_job_is_read_from_record_and_lock(host: Host) -> None:
    import fcntl

    assert guard.read_job(str(host.job)) == guard.Job("none", "")
    (host.job / "status.json").write_text(json.dumps({"state": "running", "token": "t"}))
    assert guard.read_job(str(host.job)) == guard.Job("lost", "t")
    with (host.job / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert guard.read_job(str(host.job)) == guard.Job("running", "t")
        (host.job / "status.json").write_text(json.dumps({"state": "ended", "token": "t"}))
        assert guard.read_job(str(host.job)) == guard.Job("ended", "t")
    (host.job / "status.json").write_text("{")
    assert guard.read_job(str(host.job)).state == "none"


def test_sessions_are_open_connections_to_the_port() -> None:
    import socket

    with socket.create_server(("127.3.4.5", 0)) as server:
        port = server.getsockname()[1]
        assert guard.count_sessions(port, "127.3.4.5") == 0
        with socket.create_connection(("127.3.4.5", port)), socket.create_connection(("127.3.4.5", port)):
            assert guard.count_sessions(port, "127.3.4.5") == 2
            assert guard.count_sessions(port) == 2
            assert guard.count_sessions(port, "127.3.4.6") == 0


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_it_works_on_old_and_new_python(tmp_path: Path, version: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guard\n"
        "guard.Guard(sys.argv[2], guard.Limits(9.0, 0.3, 9.0, 9.0, 'end'), guard.boottime_s(),"
        " ending=print, sessions=lambda: guard.count_sessions(22)).run()"
    )
    done = subprocess.run(
        [find_python(version), "-B", "-W", "error", "-c", code, str(GUARD_FILE.parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "fuse: no controller checked in within 0.3 s\n"
    assert json.loads((tmp_path / ".gpu-runner" / "guard" / "status.json").read_text())["state"] == "ending"
