"""A folder of local machines for tests, with an eye of its own on what is left of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from provisioner.clock import Clock, SystemClock
from provisioner.errors import NotFoundError
from provisioner.models import (
    Expect,
    LaunchIntent,
    Lease,
    Machine,
    MachineRef,
    MachineState,
    Offer,
    OnControllerLoss,
    Scope,
)
from provisioner.providers.local import LocalProvider, cgroups, processes
from provisioner.providers.local.folder import MachineFolder, Root, read_json
from provisioner.providers.local.view import group_prefix
from tests.contract.provider_contract import end_everything, ssh, ssh_keys, wait_for

CPU = Offer(provider="local", region="localhost", instance_type="cpu")


class Box:
    """One root folder.

    Attributes:
        nonce: Put it into command lines, to find processes that hide from everything else.
    """

    def __init__(self, root: Path, *, linger_s: float = 0.0, clock: Clock | None = None) -> None:
        self.root = root
        self.provider = LocalProvider(clock=clock or SystemClock(), root=root, linger_s=linger_s)
        self.nonce = f"{secrets.randbelow(10**9):09d}"

    def intent(self, *, offer: Offer = CPU, attempt: int = 1, lease_id: str = "", **limits: Any) -> LaunchIntent:
        lease = Lease(
            id=lease_id or f"gr-{secrets.token_hex(4)}",
            holder="me",
            owner="tests",
            ttl_s=60.0,
            fuse_s=60.0,
            heartbeat_timeout_s=60.0,
            idle_timeout_s=60.0,
            on_controller_loss=OnControllerLoss.END,
        )
        return LaunchIntent(lease=replace(lease, **limits), attempt=attempt, offer=offer, ssh=ssh_keys())

    def launch(self, **limits: Any) -> Machine:
        """A machine that runs."""
        return self.wait_running(self.provider.launch(self.intent(**limits)))

    def wait_running(self, ref: MachineRef) -> Machine:
        def running() -> Machine | None:
            machine = self.provider.describe(ref)
            assert machine.state in {MachineState.PENDING, MachineState.RUNNING}, machine
            return machine if machine.state is MachineState.RUNNING else None

        found = wait_for(running, 20.0)
        assert found is not None
        return found

    def folder(self, machine: Machine) -> MachineFolder:
        return MachineFolder(self.root / machine.ref.id)

    def init_pid(self, machine: Machine) -> int:
        state = read_json(self.folder(machine).state_file)
        assert state is not None
        return int(state["pid"])

    def control(self, machine: Machine) -> Path:
        return self.folder(machine).home / ".gpu-runner" / "guard"

    def daemon(self, machine: Machine) -> None:
        """Start a process that left its session, its parents and its environment behind."""
        code = "(setsid env -i sleep {}.{} </dev/null >/dev/null 2>&1 &)"
        assert ssh(machine, code.format(500, self.nonce) + "; " + code.format(501, self.nonce))[0] == 0
        assert wait_for(lambda: len(self.hidden()) == 2, 5.0)

    def hidden(self) -> list[int]:
        """Processes with our nonce on their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f".{self.nonce}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def left(self) -> list[str]:
        prefix = group_prefix(Root(self.root))
        strays = [p.pid for members in processes.strays(str(self.root), prefix).values() for p in members]
        groups = [path for paths in cgroups.find(prefix).values() for path in paths]
        folders = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        return [*folders, *map(str, strays), *map(str, self.hidden()), *groups]

    def ended_after_s(self, machine: Machine, timeout_s: float) -> float:
        """Wait until nothing is left at all.

        Returns:
            The machine's age then.
        """
        created_s = (read_json(self.folder(machine).tags_file) or {})["created_boottime_s"]
        assert wait_for(lambda: not self.left(), timeout_s), self.left()
        inventory = self.provider.inventory(Scope())
        assert (inventory.machines, inventory.residue, inventory.unread) == ((), (), ())
        return float(SystemClock().elapsed_s() - created_s)

    def stays(self, machine: Machine, seconds: float) -> bool:
        """Whether it still runs after a while."""
        time.sleep(seconds)
        try:
            return self.provider.describe(machine.ref).state is MachineState.RUNNING
        except NotFoundError:
            return False

    def terminate(self, machine: Machine) -> None:
        self.provider.terminate(machine.ref, Expect(machine.ref.lease_id))

    def close(self) -> None:
        if self.root.exists():
            end_everything(self.provider)
        for pid in self.hidden():
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def box(root: Path, **options: Any) -> Iterator[Box]:
    made = Box(root, **options)
    try:
        yield made
    finally:
        made.close()
    assert wait_for(lambda: not made.left(), 10.0), made.left()
