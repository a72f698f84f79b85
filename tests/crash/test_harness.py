"""The harness itself: it names points alike, kills where it says, and sees a leak."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.points import Moment, Point, Territory, Trap
from tests.crash.suite import RUN
from tests.crash.sweep import Place, Stage, strike
from tests.crash.world import LocalWorld

ROOT = Path(__file__).parents[2]
ASK = """
import os, sys, urllib.request
from tests.crash.launcher import install
from tests.crash.points import Territory, Trap
place, address = sys.argv[1:]
install(Trap(lambda point, moment: place == f"{moment} {point}" and os.kill(os.getpid(), 9)), Territory({}, ""))
urllib.request.urlopen(address).read()
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LocalWorld]:
    made = LocalWorld(tmp_path)
    yield made
    made.close()


class Server(http.server.ThreadingHTTPServer):
    """Counts what it was asked."""

    asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("place", "code", "asked"),
    [
        ("before MainThread: http GET /a/* #1", -signal.SIGKILL, 0),
        ("after MainThread: http GET /a/* #1", -signal.SIGKILL, 1),
        ("after MainThread: http GET /a/* #2", 0, 1),
    ],
)
def test_http_call_is_a_point(place: str, code: int, asked: int, server: Server) -> None:
    address = f"http://127.0.0.1:{server.server_port}/a/0123456789abcdef?b=c"
    done = subprocess.run([sys.executable, "-c", ASK, place, address], cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, server.asked) == (code, asked)


def test_names_of_points_leave_out_what_changes() -> None:
    passed: list[tuple[Point, Moment]] = []
    trap = Trap(lambda point, moment: passed.append((point, moment)))
    for nonce in ("0a1b2c3d", "4e5f6071"):
        name = Territory({"machines": "/m"}, "gr-1").name(f"/m/.new-gr-1-1-{nonce}/home")
        assert name == "machines/.new-LEASE-1-*/home"
        with trap.effect("mkdir", name):
            pass
    assert [str(point) for point, _ in passed[::2]] == [f"MainThread: mkdir {name} #1", f"MainThread: mkdir {name} #2"]
    assert [moment for _, moment in passed] == [Moment.BEFORE, Moment.AFTER] * 2


def test_what_lies_elsewhere_is_no_point(tmp_path: Path) -> None:
    assert Territory({"state": str(tmp_path / "state")}, "").name(tmp_path / "statement") is None


def test_with_every_layer_off_the_sweep_sees_the_leak(world: LocalWorld) -> None:
    stage = Stage(world)
    place = Place(0, "MainThread: send supervisor start #1", Moment.AFTER)
    assert strike(stage, RUN, place) == -signal.SIGKILL
    world.kill_guards(stage.lease_id)
    left = world.left(stage.lease_id)
    assert f"{stage.lease_id}-1" in left
    assert stage.remembered()
    assert stage.clean_up(stage.state) == []
    assert stage.remembered() == []


def test_touched_bystander_is_noticed(world: LocalWorld) -> None:
    world.start_bystander()
    assert world.harm() == []
    world.kill_guards("gr-bystander")
    assert world.harm()
