"""Control groups of local machines: v1, v2, both at once, or none; used where the system allows and never needed.

A machine's groups carry its name, so that what is left of one is found without any state. Light imports only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from provisioner.clock import SystemClock
from provisioner.errors import TransientError

PREFIX = "gpu-runner-"
_USED_V1 = ("memory", "pids", "cpu")
_PERIOD_US = 100_000
_REMOVE_WAIT_S = 2.0
_PAUSE_S = 0.005
_LEAF_LINKS = 2
_REAL = SystemClock()


class Limits(NamedTuple):
    """What a machine may use; None leaves it open.

    Attributes:
        memory_bytes: Main memory.
        cpus: Processors.
        pids: Processes and threads.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None


class Hierarchy(NamedTuple):
    """One mounted hierarchy of groups.

    Attributes:
        mount: Where it is mounted.
        version: 1 or 2.
        controllers: Those of a v1 hierarchy.
        own: Path of this process's group in the mounted tree.
    """

    mount: str
    version: int
    controllers: frozenset[str]
    own: str


def disabled() -> bool:
    """Whether the environment asks to do without (``GPU_RUNNER_LOCAL_CGROUPS=none``)."""
    return os.environ.get("GPU_RUNNER_LOCAL_CGROUPS", "") == "none"


def hierarchies() -> list[Hierarchy]:
    """The hierarchies that are mounted and useful here."""
    own = _own_groups()
    found = []
    for root, mount, kind, options in _mounts():
        if kind == "cgroup2":
            controllers: frozenset[str] = frozenset()
            path = own.get(frozenset())
        else:
            controllers = frozenset(options).intersection(_USED_V1)
            path = next((own[group] for group in own if group & controllers), None)
        if path is None or (kind == "cgroup" and not controllers):
            continue
        inside = os.path.relpath(path, root) if path.startswith(root) else "."
        own_path = os.path.normpath(os.path.join(mount, inside))  # noqa: PTH118
        found.append(Hierarchy(mount, 2 if kind == "cgroup2" else 1, controllers, own_path))
    return found


def create(name: str, limits: Limits) -> list[str]:
    """Make a machine's groups wherever the system lets us.

    Args:
        name: The group's name.
        limits: What the machine may use.

    Returns:
        Paths of the groups made, perhaps none.
    """
    if disabled():
        return []
    made = []
    for hierarchy in hierarchies():
        for parent in _parents(hierarchy):
            path = f"{parent}/{name}"
            if _make(path):
                _limit(path, hierarchy, limits)
                made.append(path)
                break
    return made


def join(path: str) -> None:
    """Move the calling process into a group.

    Args:
        path: The group.

    Raises:
        OSError: If the system forbids it.
    """
    with open(f"{path}/cgroup.procs", "wb", buffering=0) as stream:  # noqa: PTH123
        stream.write(b"0")


def find(prefix: str) -> dict[str, list[str]]:
    """All groups whose name begins so, wherever in the mounted trees.

    Args:
        prefix: Begin of the names.

    Returns:
        Paths by name.
    """
    found: dict[str, list[str]] = {}
    for mount in sorted({hierarchy.mount for hierarchy in hierarchies()}):
        for path in _walk(mount):
            name = os.path.basename(path)  # noqa: PTH119
            if name.startswith(prefix):
                found.setdefault(name, []).append(path)
    return found


def freeze_forks(path: str) -> None:
    """Forbid new processes in a group, so that killing its members comes to an end; best effort."""
    _write(f"{path}/pids.max", "0")


def kill_members(path: str) -> None:
    """Kill all members at once where the kernel offers that (v2, ``cgroup.kill``); best effort."""
    _write(f"{path}/cgroup.kill", "1")


def members(path: str) -> list[int]:
    """Process numbers in a group and the groups below it."""
    found: list[int] = []
    for folder in _walk(path):
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as stream:  # noqa: PTH123
            found += [int(line) for line in stream]
    return found


def remove(path: str) -> None:
    """Remove a group and those below it; its members must be dead, and the kernel may still be burying them.

    Args:
        path: The group; one that is gone already is fine.

    Raises:
        TransientError: If it cannot be removed now.
    """
    end_s = _REAL.elapsed_s() + _REMOVE_WAIT_S
    while True:
        problem = _remove_once(path)
        if problem is None:
            return
        if _REAL.elapsed_s() >= end_s:
            raise TransientError(f"cannot remove the cgroup {path}", details=str(problem))
        _REAL.sleep(_PAUSE_S)


def _remove_once(path: str) -> OSError | None:
    for folder in reversed(list(_walk(path))):
        try:
            os.rmdir(folder)  # noqa: PTH106
        except FileNotFoundError:
            continue
        except OSError as error:
            return error
    return None


def _own_groups() -> dict[frozenset[str], str]:
    """This process's groups by controllers; the empty set is v2."""
    found = {}
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        found[frozenset(controllers.split(",")) if controllers else frozenset()] = path
    return found


def _mounts() -> Iterator[tuple[str, str, str, list[str]]]:
    """Mounted cgroup trees as (root inside the tree, mount point, type, super options)."""
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind and kind[0] in ("cgroup", "cgroup2"):
            yield fields[3], fields[4], kind[0], kind[-1].split(",")


def _parents(hierarchy: Hierarchy) -> list[str]:
    """Where to try to make a group, best first."""
    if hierarchy.version == 1:
        return [hierarchy.own]
    lineage = [hierarchy.own]
    while lineage[-1] != hierarchy.mount and lineage[-1].startswith(hierarchy.mount):
        lineage.append(os.path.dirname(lineage[-1]))  # noqa: PTH120
    # The nearest ancestor that hands controllers down can limit; any other can only gather and kill.
    limiting = [path for path in lineage if {"memory", "pids"} & set(_text(f"{path}/cgroup.subtree_control").split())]
    return [*limiting[:1], *lineage]


def _make(path: str) -> bool:
    """Make a group that this process can move members into."""
    try:
        os.mkdir(path, 0o755)  # noqa: PTH102
    except FileExistsError:
        return os.access(f"{path}/cgroup.procs", os.W_OK)
    except OSError:
        return False
    if os.access(f"{path}/cgroup.procs", os.W_OK):
        return True
    with contextlib.suppress(OSError):  # found by name later, if it stays
        os.rmdir(path)  # noqa: PTH106
    return False


def _limit(path: str, hierarchy: Hierarchy, limits: Limits) -> None:
    quota = None if limits.cpus is None else str(max(1000, round(limits.cpus * _PERIOD_US)))
    if hierarchy.version == 1:
        wishes = {
            "memory.limit_in_bytes": limits.memory_bytes,
            "cpu.cfs_quota_us": quota,
            "pids.max": limits.pids,
        }
    else:
        cpu = None if quota is None else f"{quota} {_PERIOD_US}"
        wishes = {"memory.max": limits.memory_bytes, "cpu.max": cpu, "pids.max": limits.pids}
    for file, value in wishes.items():
        if value is not None:
            _write(f"{path}/{file}", str(value))


def _walk(path: str) -> Iterator[str]:
    """A group and all below it, parents first; a leaf is known by its link count and not listed."""
    pending = [path]
    while pending:
        folder = pending.pop()
        try:
            links = os.stat(folder).st_nlink  # noqa: PTH116
        except OSError:
            continue
        yield folder
        if links == _LEAF_LINKS:
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _write(path: str, value: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, value.encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            return stream.read()
    except OSError:
        return ""


def _lines(path: str) -> list[str]:
    return _text(path).splitlines()
