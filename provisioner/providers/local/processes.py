"""The processes of a machine: found by cgroup, by a mark in their environment and by descent, and ended for good.

No one of the three finds them all: a daemon can clear its environment and leave its parents, a host may have no
cgroups, and an SSH server overwrites the memory that shows its environment. Light imports only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterable
from typing import NamedTuple

from provisioner.clock import SystemClock

MARK = "GPU_RUNNER_MACHINE"
_REAL = SystemClock()
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1


class Process(NamedTuple):
    """A process that can be told from a later one with the same number.

    Attributes:
        pid: Its number.
        start: Clock tick of its start.
        parent: Its parent's number.
    """

    pid: int
    start: int
    parent: int


def all_processes() -> dict[int, Process]:
    """Every process of this host that is not dead yet, by number."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  # names, not paths
        if name.isdigit():
            process = read_process(int(name))
            if process is not None:
                found[process.pid] = process
    return found


def read_process(pid: int) -> Process | None:
    """One process; None when it is gone or a zombie."""
    text = _read(f"/proc/{pid}/stat")
    # The name stands in brackets and may hold anything, brackets too.
    fields = text.rpartition(b")")[2].split()
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return Process(pid=pid, start=int(fields[19]), parent=int(fields[1]))


def of_machine(folder: str, cgroup: str, *, init: int | None = None) -> list[Process]:
    """Every process of one machine; never the caller itself.

    Args:
        folder: Absolute path of the machine's folder.
        cgroup: Name of the machine's cgroup.
        init: The machine's first process: its descendants are found, and it is left out.

    Returns:
        The processes.
    """
    everything = all_processes()
    roots = [pid for pid in everything if pid == init or (pid != os.getpid() and _belongs(pid, folder, cgroup))]
    found = _with_descendants(roots, everything)
    return [everything[pid] for pid in found if pid not in (init, os.getpid())]


def strays(root: str, cgroup_prefix: str) -> dict[str, list[Process]]:
    """Every process of any machine below a root folder.

    Args:
        root: Absolute path of the folder of machines.
        cgroup_prefix: How the names of their cgroups begin.

    Returns:
        Processes by machine name; only those that carry a sign themselves.
    """
    mark = re.compile(rb"(?:^|\0)%s=%s/([^/\0]+)" % (MARK.encode(), re.escape(os.fsencode(root))))
    group = re.compile(rb"/%s([^/\n]+)" % re.escape(cgroup_prefix.encode()))
    found: dict[str, list[Process]] = {}
    for pid, process in all_processes().items():
        match = mark.search(_read(f"/proc/{pid}/environ")) or group.search(_read(f"/proc/{pid}/cgroup"))
        name = os.fsdecode(match.group(1)) if match else _console_owner(pid, root)
        if name is not None:
            found.setdefault(name, []).append(process)
    return found


def end_all(find: Callable[[], list[Process]], *, timeout_s: float) -> list[Process]:
    """Kill again and again until none is found: a process may fork between the look and the blow.

    Args:
        find: Looks for them.
        timeout_s: How long to try.

    Returns:
        Those that would not die.
    """
    end_s = _REAL.elapsed_s() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        left = find()
        if not left or _REAL.elapsed_s() >= end_s:
            return left
        for process in left:
            kill(process)
        _REAL.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def kill(process: Process) -> None:
    """Send SIGKILL to exactly this process, never to a later one with its number.

    Args:
        process: As it was found.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # who survives is found again and reported
        descriptor = _pidfd(process.pid)
        try:
            now = read_process(process.pid)
            if now is None or now.start != process.start:
                return
            if descriptor is None:
                os.kill(process.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def descendants(pid: int) -> list[Process]:
    """A process's living children, their children, and so on."""
    everything = all_processes()
    return [everything[found] for found in _with_descendants([pid], everything) if found != pid]


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):  # an old kernel, or a sandbox without the call
        return None


def _belongs(pid: int, folder: str, cgroup: str) -> bool:
    name = f"/{cgroup}".encode()
    lines = _read(f"/proc/{pid}/cgroup").splitlines()
    if any(line.endswith(name) or name + b"/" in line for line in lines):
        return True
    mark = os.fsencode(f"{MARK}={folder}") + b"\0"
    environment = _read(f"/proc/{pid}/environ")
    if environment.startswith(mark) or b"\0" + mark in environment:
        return True
    return _console_owner(pid, os.path.dirname(folder)) == os.path.basename(folder)  # noqa: PTH119, PTH120


def _console_owner(pid: int, root: str) -> str | None:
    """The machine on whose console an SSH server process writes; None for any other process."""
    if not _read(f"/proc/{pid}/comm").startswith(b"sshd"):
        return None
    try:
        target = os.readlink(f"/proc/{pid}/fd/2")  # noqa: PTH115
    except OSError:
        return None
    if not target.startswith(f"{root}/") or "/console.log" not in target:
        return None
    return target[len(root) + 1 :].split("/", 1)[0]


def _with_descendants(roots: Iterable[int], everything: dict[int, Process]) -> list[int]:
    children: dict[int, list[int]] = {}
    for process in everything.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, None] = dict.fromkeys(roots)
    pending = list(found)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found[child] = None
                pending.append(child)
    return list(found)


def _read(path: str) -> bytes:
    """A file below /proc; empty when the process is gone or somebody else's."""
    try:
        with open(path, "rb") as stream:  # noqa: PTH123  # thousands of them
            return stream.read()
    except OSError:
        return b""
