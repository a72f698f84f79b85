"""What a machine's folder, lock and processes say of it."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from provisioner.clock import Clock
from provisioner.errors import BootError, NotFoundError
from provisioner.models import Endpoint, Machine, MachineRef, MachineState
from provisioner.providers.local import cgroups, host, processes
from provisioner.providers.local.folder import MachineFolder, Root, read_json
from provisioner.providers.local.tags import Tags

TERMINATED = "terminated"
_START_PATIENCE_S = 5.0
_STATES = {
    "running": MachineState.RUNNING,
    "ending": MachineState.STOPPING,
    "terminated": MachineState.TERMINATED,
}


def group_prefix(root: Root) -> str:
    """How the names of the cgroups of a root's machines begin."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root.path))).hexdigest()
    return f"{cgroups.PREFIX}{digest[:8]}-"


def machine(folder: MachineFolder, root: Root, clock: Clock) -> Machine:
    """Tell of one machine.

    Args:
        folder: Its folder.
        root: The folder of all.
        clock: Its age is told on it.

    Returns:
        What is known.

    Raises:
        NotFoundError: If it is not there.
    """
    alive = folder.exists() and folder.guard_alive()
    state = read_json(folder.state_file) or {}
    tags = Tags.from_json(read_json(folder.tags_file))
    if not folder.exists():
        raise NotFoundError(f"machine {folder.name} is not there")
    if tags is None:
        ref = MachineRef("local", host.REGION, folder.name, None)
        word = _STATES.get(str(state.get("state")), MachineState.UNKNOWN) if alive else MachineState.UNKNOWN
        return Machine(ref, word, None, reason="its tags cannot be read", age_s=leftover_age_s(folder, clock))
    life, reason = _life(folder, tags, state, alive=alive, group=group_prefix(root) + folder.name, clock=clock)
    age_s = _age_s(tags, clock)
    guard = _guard_words(folder) if life is MachineState.RUNNING else {}
    failed = bool(state.get("failed")) and life in (MachineState.TERMINATED, MachineState.STOPPING)
    return Machine(
        ref=MachineRef("local", host.REGION, folder.name, tags.lease.id),
        state=life,
        lease=tags.lease,
        attempt=tags.attempt,
        age_s=age_s,
        endpoint=_endpoint(tags, state) if life is MachineState.RUNNING else None,
        offer=tags.offer,
        releasing=tags.releasing,
        billing_stopped=life in (MachineState.STOPPED, MachineState.TERMINATED),
        controller_seen_s=_controller_seen_s(guard, age_s),
        soft_deadline_in_s=_soft_deadline_in_s(guard, age_s),
        reason=reason,
        failure=BootError(f"machine {folder.name} did not start", details=reason) if failed else None,
    )


def leftover_age_s(folder: MachineFolder, clock: Clock) -> float | None:
    """Age of a folder whose tags may be unreadable, by its last change; None when that is not known."""
    try:
        changed_s = folder.path.stat().st_mtime
    except OSError:
        return None
    return max(0.0, clock.utc().timestamp() - changed_s)


def _life(
    folder: MachineFolder, tags: Tags, state: dict[str, Any], *, alive: bool, group: str, clock: Clock
) -> tuple[MachineState, str]:
    reason = str(state.get("reason", ""))
    if tags.boot_id != host.boot_id():
        return MachineState.STOPPED, "the host was rebooted"
    if alive:
        return _STATES.get(str(state.get("state")), MachineState.PENDING), reason
    if not state and _age_s(tags, clock) < _START_PATIENCE_S:
        return MachineState.PENDING, ""
    left = processes.of_machine(str(folder.path), group)
    if folder.guard_alive():
        return MachineState.PENDING, ""
    if left:
        return MachineState.UNKNOWN, f"its guard is dead and {len(left)} of its processes live"
    return MachineState.STOPPED, reason or ("its guard died" if state else "its first process never ran")


def _age_s(tags: Tags, clock: Clock) -> float:
    if tags.boot_id != host.boot_id():  # elapsed time of another boot says nothing: the whole lease counts as over
        return max(tags.lease.ttl_s, clock.elapsed_s())
    return max(0.0, clock.elapsed_s() - tags.created_boottime_s)


def _endpoint(tags: Tags, state: dict[str, Any]) -> Endpoint | None:
    address, port = state.get("host"), state.get("port")
    if not isinstance(address, str) or not isinstance(port, int) or not port:
        return None
    return Endpoint(address, port, tags.user, tags.host_public_key)


def _guard_words(folder: MachineFolder) -> dict[str, Any]:
    """What the guard last said; empty when it has said nothing."""
    return read_json(folder.home / ".gpu-runner" / "guard" / "status.json") or {}


def _controller_seen_s(guard: dict[str, Any], age_s: float) -> float | None:
    """Seconds since a controller's last sign, brought up to now; None where none is expected (a detached lease)."""
    seen_s, elapsed_s = _number(guard, "controller_seen_s"), _number(guard, "elapsed_s")
    if guard.get("mode") == "detached" or seen_s is None or elapsed_s is None:
        return None
    return seen_s + max(0.0, age_s - elapsed_s)


def _soft_deadline_in_s(guard: dict[str, Any], age_s: float) -> float | None:
    soft_s, elapsed_s = _number(guard, "soft_in_s"), _number(guard, "elapsed_s")
    return None if soft_s is None or elapsed_s is None else soft_s - (age_s - elapsed_s)


def _number(words: dict[str, Any], key: str) -> float | None:
    value = words.get(key)
    return float(value) if isinstance(value, (int, float)) else None
