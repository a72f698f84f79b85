"""The controller in a process that counts its effects, or that is killed at exactly one of them.

By hand, with a point as a sweep names it::

    python -m tests.crash.launcher --lease gr-x --at 'MainThread: start /bin/sh #1' --moment after -- \
        run --lease-id gr-x -- true
"""

from __future__ import annotations

import argparse
import builtins
import functools
import http.client
import io
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import paramiko

from provisioner import cli
from provisioner.cli import context
from provisioner.clock import SystemClock
from provisioner.remote import transport
from tests.crash.points import Moment, Point, Territory, Trap

_COMMANDS = (r"(supervisor|tarstream)\S*\.py +(\w+)", r"(status\.json)", r"(orders\.json)", r"(beat)", r"(hashlib)")
_VERBS = tuple(re.compile(pattern) for pattern in _COMMANDS)


@dataclass(frozen=True)
class Plan:
    """What is to happen to one controller.

    Attributes:
        lease_id: The lease that it is about.
        at: The point, as text; None only counts.
        moment: Before or after it.
        signal: What is sent to the process there.
        trace: File that gets a line for each point, or one for when the trap sprang; None for none.
        later_s: How far its clock stands ahead.
        settled: The effect from which on its exit code stands, as part of a point's name.
    """

    lease_id: str = ""
    at: str | None = None
    moment: Moment = Moment.BEFORE
    signal: signal.Signals = signal.SIGKILL
    trace: Path | None = None
    later_s: float = 0.0
    settled: str = ""


def control(plan: Plan, arguments: Sequence[str]) -> None:
    """Be the controller: ends with its exit code, or by the signal."""
    if plan.later_s:
        _set_clock(plan.later_s)
    folders = {
        "state": os.environ.get("GPU_RUNNER_STATE_DIR", ""),
        "machines": os.environ.get("GPU_RUNNER_LOCAL_DIR", ""),
        "cwd": os.getcwd(),  # noqa: PTH109 - as text
    }
    territory = Territory({name: os.path.realpath(path) for name, path in folders.items() if path}, plan.lease_id)
    install(Trap(_spring(plan)), territory)
    sys.argv = ["gpu-runner", *arguments]
    cli.main()


def in_child(plan: Plan, arguments: Sequence[str], environment: Mapping[str, str], cwd: str, output: str) -> None:
    """The same in a process that was forked off with everything imported."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with open(output, "wb", buffering=0) as stream:  # noqa: PTH123 - before the traps
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    control(plan, arguments)


def _spring(plan: Plan) -> Callable[[Point, Moment], object]:
    note = _notes(plan.trace)
    if plan.at is None:
        return lambda point, moment: note(f"{moment} {point}\n")

    settled = threading.Event()

    def spring(point: Point, moment: Moment) -> None:
        if plan.settled and plan.settled in str(point):
            settled.set()
        if (str(point), moment) == (plan.at, plan.moment):
            note(f"{time.monotonic()} {'settled' if settled.is_set() else 'open'}\n")
            os.kill(os.getpid(), plan.signal)

    return spring


def _notes(path: Path | None) -> Callable[[str], object]:
    if path is None:
        return lambda _: None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # stays open to the end
    return lambda line: os.write(descriptor, line.encode())  # one write, so that threads do not mix


def _set_clock(later_s: float) -> None:
    """Move the clock of the commands ahead; it does not wait either, since what it waits for has passed."""

    class Later(SystemClock):
        def elapsed_s(self) -> float:
            return super().elapsed_s() + later_s

        def utc(self) -> datetime:
            return super().utc() + timedelta(seconds=later_s)

        def sleep(self, seconds: float) -> None:
            super().sleep(min(seconds, 0.05))

    setattr(context, "SystemClock", Later)  # noqa: B010 - not what the type checker thinks it is


def install(trap: Trap, territory: Territory) -> None:
    """Put the trap around everything that leaves this process; to be called once, before any of it does."""
    _install_files(trap, territory)
    _install_processes(trap)
    _install_ssh(trap)
    _install_http(trap, territory)


def _wrap(owner: Any, name: str, trap: Trap, name_of: Callable[..., tuple[str, str] | None]) -> None:
    """Replace a function by one that passes the trap where ``name_of`` its arguments gives a kind and a target."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def hooked(*arguments: Any, **named: Any) -> Any:
        found = name_of(*arguments, **named)
        if found is None:
            return original(*arguments, **named)
        with trap.effect(*found):
            return original(*arguments, **named)

    setattr(owner, name, staticmethod(hooked) if isinstance(owner, type) and owner.__module__ == "pathlib" else hooked)


def _install_files(trap: Trap, territory: Territory) -> None:
    def changes(kind: str) -> Callable[..., tuple[str, str] | None]:
        def name_of(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> tuple[str, str] | None:
            name = territory.name(path, dir_fd)
            return None if name is None else (kind, name)

        return name_of

    def opens(path: Any, mode: str | int = "r", *_: Any, dir_fd: int | None = None, **named: Any) -> Any:
        mode = named.get("mode", named.get("flags", mode))
        writes = mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(mode, int) else set(mode) & set("wax+")
        return changes("write")(path, dir_fd=dir_fd) if writes else None

    old_pathlib = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10 keeps its own names of all these
    for kind in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        for owner in filter(None, (os, old_pathlib)):
            _wrap(owner, kind, trap, changes(kind))
    for owner, name in ((os, "open"), (io, "open"), (builtins, "open"), (old_pathlib, "open")):
        if owner is not None:
            _wrap(owner, name, trap, opens)


def _install_processes(trap: Trap) -> None:
    def starts(_: Any, arguments: Any, *__: Any, **___: Any) -> tuple[str, str]:
        first = arguments if isinstance(arguments, (str, bytes)) else arguments[0]
        return "start", os.path.basename(os.fsdecode(first))  # noqa: PTH119 - text

    _wrap(subprocess.Popen, "_execute_child", trap, starts)
    for name in ("fork", "posix_spawn", "posix_spawnp", "execv", "execve"):
        _wrap(os, name, trap, lambda path="", *_, **__: ("start", os.path.basename(os.fsdecode(path))))  # noqa: PTH119
    _wrap(os, "kill", trap, lambda pid, number: None if pid == os.getpid() or not number else ("signal", "process"))
    if hasattr(signal, "pidfd_send_signal"):
        _wrap(signal, "pidfd_send_signal", trap, lambda *_: ("signal", "process"))


def _install_ssh(trap: Trap) -> None:
    """A command leaves in three parts: a channel is opened, its request is accepted, its input is sent whole."""
    opening = threading.local()
    execute, open_session = transport.Transport.execute, paramiko.Transport.open_session
    shutdown_write = paramiko.Channel.shutdown_write

    def hooked_execute(self: Any, command: str, *arguments: Any) -> Any:
        opening.verb = _verb(command)
        with trap.effect("exec", opening.verb):
            channel: Any = execute(self, command, *arguments)
        channel.crash_verb = opening.verb
        return channel

    def hooked_open_session(self: Any, *arguments: Any, **named: Any) -> Any:
        with trap.effect("channel", opening.verb):
            return open_session(self, *arguments, **named)

    def hooked_shutdown_write(self: Any) -> None:
        with trap.effect("send", self.crash_verb):
            shutdown_write(self)

    transport.Transport.execute = hooked_execute  # type: ignore[assignment,method-assign]
    paramiko.Transport.open_session = hooked_open_session  # type: ignore[method-assign]
    paramiko.Channel.shutdown_write = hooked_shutdown_write  # type: ignore[method-assign]
    for name in ("connect", "connect_ex"):
        _wrap(socket.socket, name, trap, lambda *_: ("connect", "socket"))


def _verb(command: str) -> str:
    """What a command on the machine is about, in a word or two."""
    found = next(filter(None, (pattern.search(command) for pattern in _VERBS)), None)
    return " ".join(found.groups()) if found else "other"


def _install_http(trap: Trap, territory: Territory) -> None:
    """Every client that we know of sends through ``http.client``: urllib3 and with it all the SDKs."""
    put, send, answer = (getattr(http.client.HTTPConnection, n) for n in ("putrequest", "endheaders", "getresponse"))

    def putrequest(self: Any, method: str, url: str, *arguments: Any, **named: Any) -> Any:
        self.crash_target = territory.plain(f"{method} {url.partition('?')[0]}")
        return put(self, method, url, *arguments, **named)

    def endheaders(self: Any, *arguments: Any, **named: Any) -> Any:
        self.crash_point = trap.arrive("http", self.crash_target)
        return send(self, *arguments, **named)

    def getresponse(self: Any, *arguments: Any, **named: Any) -> Any:
        response = answer(self, *arguments, **named)
        trap.leave(self.crash_point)
        return response

    http.client.HTTPConnection.putrequest = putrequest  # type: ignore[method-assign]
    http.client.HTTPConnection.endheaders = endheaders  # type: ignore[method-assign]
    http.client.HTTPConnection.getresponse = getresponse  # type: ignore[method-assign]


def main() -> None:
    """Entry for people."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.launcher", description=__doc__)
    parser.add_argument("--lease", default="", help="the lease id, shown as LEASE")
    parser.add_argument("--at", help="the point; without one, all points are listed")
    parser.add_argument("--moment", type=Moment, choices=list(Moment), default=Moment.BEFORE)
    parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT"])
    parser.add_argument("--trace", type=Path, default=Path("/dev/stderr"))
    parser.add_argument("--later", type=float, default=0.0, metavar="SECONDS", help="how far the clock is ahead")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    number = signal.Signals[f"SIG{chosen.signal}"]
    plan = Plan(chosen.lease, chosen.at, chosen.moment, number, chosen.trace, chosen.later)
    control(plan, [word for i, word in enumerate(chosen.arguments) if i or word != "--"])


if __name__ == "__main__":
    main()
