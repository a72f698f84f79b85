"""Signs of life and orders, in the files that the guard reads."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.clock import SystemClock
from provisioner.errors import MachineLostError, TransientError
from provisioner.remote.heartbeat import GuardStatus, Heartbeat, guard_status, order
from provisioner.remote.link import Link
from provisioner.remote.session import KeepAlive
from tests.proxy import Proxy, proxy_to
from tests.sshd import PrivateSshd, private_sshd

CLOCK = SystemClock()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def proxy(sshd: PrivateSshd) -> Iterator[Proxy]:
    with proxy_to(sshd.port) as made:
        yield made


@pytest.fixture
def link(sshd: PrivateSshd, proxy: Proxy) -> Iterator[Link]:
    endpoint = replace(sshd.endpoint, port=proxy.port)
    made = Link(endpoint, sshd.private_key, clock=CLOCK, reconnect_for_s=5, keep_alive=KeepAlive(0.2, 1.0))
    yield made
    made.close()


@pytest.fixture
def folder(sshd: PrivateSshd) -> Path:
    made = sshd.home / ".gpu-runner" / "guard"
    made.mkdir(parents=True, exist_ok=True)
    for path in made.iterdir():
        path.unlink()
    return made


def mark(folder: Path) -> tuple[int, int, int]:
    """What the guard looks at."""
    try:
        found = (folder / "beat").stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def changes(folder: Path, times: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    last = mark(folder)
    while times and time.monotonic() < end:
        if mark(folder) != last:
            last = mark(folder)
            times -= 1
        time.sleep(0.01)
    return times == 0


def eventually(check: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    assert check()


def test_beats_change_the_file_until_stopped(link: Link, folder: Path) -> None:
    with Heartbeat(link, CLOCK, 0.1):
        assert changes(folder, 5)
    time.sleep(0.2)
    assert not changes(folder, 1, within_s=0.5)


def test_beats_come_back_after_cuts_and_after_a_stall(link: Link, proxy: Proxy, folder: Path) -> None:
    with Heartbeat(link, CLOCK, 0.1) as heartbeat:
        for _ in range(3):
            assert changes(folder, 2)
            proxy.cut()
        assert changes(folder, 2)
        proxy.stall()
        time.sleep(2)
        proxy.flow()
        assert changes(folder, 3)
        assert heartbeat.error is None


def test_a_lost_machine_ends_the_thread_with_its_error(link: Link, proxy: Proxy, folder: Path) -> None:
    heartbeat = Heartbeat(link, CLOCK, 0.1)
    heartbeat.start()
    assert changes(folder, 1)
    link.abort(MachineLostError("gone"))
    eventually(lambda: heartbeat.error is not None)
    assert isinstance(heartbeat.error, MachineLostError)
    heartbeat.stop()
    assert proxy.accepted == 1


def test_stop_before_start_and_twice(link: Link) -> None:
    heartbeat = Heartbeat(link, CLOCK, 0.1)
    heartbeat.stop()
    heartbeat.stop()


def test_orders_are_numbered_beyond_what_the_guard_has_taken(link: Link, folder: Path) -> None:
    assert order(link, mode="detached", end_in_s=60.5) == 1
    document = json.loads((folder / "orders.json").read_text())
    assert document == {"seq": 1, "mode": "detached", "end_in_s": 60.5, "collected": False}
    assert order(link, collected=True) == 2
    (folder / "status.json").write_text(json.dumps({"state": "armed", "orders_seq": 41}))
    assert order(link) == 42
    assert sorted(path.name for path in folder.iterdir()) == ["orders.json", "status.json"]
    assert stat.S_IMODE((folder / "orders.json").stat().st_mode) == 0o600


def test_the_guard_has_the_word(link: Link, folder: Path) -> None:
    assert guard_status(link) is None
    words = {"state": "ending", "reason": "fuse", "orders_seq": 3, "hard_in_s": 9.5, "soft_in_s": None, "news": 1}
    (folder / "status.json").write_text(json.dumps(words))
    assert guard_status(link) == GuardStatus("ending", "fuse", orders_seq=3, hard_in_s=9.5)


def test_a_control_folder_that_cannot_be_used(link: Link, folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.write_text("a file in its place")
    try:
        with pytest.raises(TransientError, match="control folder"):
            order(link)
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)
