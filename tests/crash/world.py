"""Where controllers are killed: one provider with its surroundings, and what "nothing is left" means there.

A provider joins the sweep with a subclass of ``CrashWorld``; see ``LocalWorld``.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from provisioner import ci
from provisioner.clock import SystemClock
from provisioner.errors import NotFoundError
from provisioner.models import Expect, LaunchIntent, Lease, Machine, MachineState, Offer, OnControllerLoss, Scope
from provisioner.providers.base import Provider
from provisioner.providers.local import LocalProvider, cgroups, processes
from provisioner.providers.local.folder import Root, read_json
from provisioner.providers.local.view import group_prefix
from tests.contract.provider_contract import end_everything, ssh_keys, wait_for

DAY_S = 86400.0
LATER_S = 7200.0
"""How far the clock of a cleanup stands ahead: past every lease but the bystander's."""
_BYSTANDER = "gr-bystander"
_NUMBERS = itertools.count(1)


class CrashWorld(abc.ABC):
    """One provider, empty but for one live lease that nobody may touch.

    Args:
        folder: Of its own.

    Attributes:
        name: The provider's.
        guarded_from: The effect with which a machine's guard begins to live, as part of a point's name.
        guarded_until: The effect of the release with which it is ended.
    """

    name: ClassVar[str]
    guarded_from: ClassVar[str]
    guarded_until: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cwd = folder / "cwd"
        self.cwd.mkdir(parents=True)
        (self.cwd / "input.txt").write_text("in")
        self.bystander: Machine | None = None

    @property
    @abc.abstractmethod
    def provider(self) -> Provider:
        """The provider, as a new process would make it."""

    @abc.abstractmethod
    def environment(self) -> Mapping[str, str]:
        """What leads a controller to this world; state folder and identity come on top."""

    @abc.abstractmethod
    def offer(self) -> Offer:
        """Something cheap that can be had."""

    @abc.abstractmethod
    def kill_guards(self, lease_id: str) -> None:
        """Kill the guards of a lease's machines with SIGKILL, and nothing else."""

    @abc.abstractmethod
    def leave_residue(self, lease_id: str) -> None:
        """Leave behind what a crash could leave of a lease."""

    @abc.abstractmethod
    def working(self, lease_id: str) -> list[str]:
        """What costs something as long as it is there; a guard that has ended its machine does not."""

    @abc.abstractmethod
    def left(self, lease_id: str, *, but_note: bool = False) -> list[str]:
        """What exists of a lease, looked up without the provider; empty when all is gone.

        Args:
            lease_id: The lease.
            but_note: Leave out what a machine that has ended may show of itself for a while.
        """

    @abc.abstractmethod
    def fingerprint(self, machine: Machine) -> Any:
        """What changes if a machine is restarted, replaced or loses a process."""

    def new_lease(self) -> str:
        """A lease id that nobody else has."""
        return f"gr-{os.getpid()}x{next(_NUMBERS)}"

    def launch(self, lease_id: str) -> Machine:
        """A machine that runs for a day, whose controller never came; owned by whoever runs these tests."""
        lease = Lease(
            id=lease_id,
            holder="launched",
            owner=ci.identify({}).owner,
            ttl_s=DAY_S if lease_id == _BYSTANDER else LATER_S / 2,
            on_controller_loss=OnControllerLoss.END,
            fuse_s=DAY_S,
            heartbeat_timeout_s=DAY_S,
            idle_timeout_s=DAY_S,
        )
        provider = self.provider
        ref = provider.launch(LaunchIntent(lease=lease, attempt=1, offer=self.offer(), ssh=ssh_keys()))
        found = wait_for(lambda: (m := provider.describe(ref)).state is MachineState.RUNNING and m, 30.0)
        assert found, provider.describe(ref)
        return found

    def start_bystander(self) -> None:
        """Begin the lease that must outlive everything that happens here."""
        self.bystander = self.launch(_BYSTANDER)
        self._fingerprint = self.fingerprint(self.bystander)

    def harm(self) -> list[str]:
        """What happened to the bystander; empty when nothing did."""
        if self.bystander is None:
            return []
        try:
            now = self.provider.describe(self.bystander.ref)
        except NotFoundError:
            return ["the bystander is gone"]
        same = now.state is MachineState.RUNNING and not now.releasing and self.fingerprint(now) == self._fingerprint
        return [] if same else [f"the bystander was touched: {now}"]

    def end(self, lease_id: str) -> None:
        """End what a test found left, so that the next one starts clean."""
        inventory = self.provider.inventory(Scope(lease_id))
        for machine in inventory.machines:
            self.provider.terminate(machine.ref, Expect(lease_id))
        for residue in self.provider.inventory(Scope(lease_id)).residue:
            self.provider.remove_residue(residue.id, residue.kind)

    def close(self) -> None:
        """End everything."""
        end_everything(self.provider)


_NOTE = {"machine.json", "state.json", "guard.lock"}


class LocalWorld(CrashWorld):
    """A root folder of its own, and all processes and cgroups that name it."""

    name = "local"
    guarded_from = "start sh"
    guarded_until = "signal process"

    @property
    def root(self) -> Path:
        return self.folder / "machines"

    @property
    def provider(self) -> Provider:
        return LocalProvider(clock=SystemClock(), root=self.root)

    def environment(self) -> Mapping[str, str]:
        kept = ("PATH", "GPU_RUNNER_LOCAL_SSHD", "GPU_RUNNER_LOCAL_CGROUPS")
        return {name: os.environ[name] for name in kept if name in os.environ} | {
            "GPU_RUNNER_LOCAL_DIR": str(self.root)
        }

    def offer(self) -> Offer:
        return Offer(provider="local", region="localhost", instance_type="cpu", price_usd_hour=0.0)

    def kill_guards(self, lease_id: str) -> None:
        left = processes.end_all(lambda: self._guards(lease_id), timeout_s=5.0)
        assert not left, left

    def _guards(self, lease_id: str) -> list[processes.Process]:
        """First processes of the lease's machines, and the shells that are about to start one."""
        found = []
        for process in self._processes(lease_id):
            with contextlib.suppress(OSError):
                if b"provisioner.providers.local.init" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                    found.append(process)
        return found

    def leave_residue(self, lease_id: str) -> None:
        for name in (f".new-{lease_id}-2-0a1b2c3d", f".gone-{lease_id}-3-0a1b2c3d"):
            (self.root / name / "home").mkdir(parents=True)
            (self.root / name / "home" / "file").write_text("x")
        cgroups.create(f"{self._prefix}{lease_id}-4", cgroups.Limits())

    def working(self, lease_id: str) -> list[str]:
        guards = self._guards(lease_id)
        return [f"process {process.pid}" for process in self._processes(lease_id) if process not in guards]

    def left(self, lease_id: str, *, but_note: bool = False) -> list[str]:
        names = [name for name in Root(self.root).entries() if f"{lease_id}-" in name]
        groups = [
            path for name, paths in cgroups.find(self._prefix).items() if f"{lease_id}-" in name for path in paths
        ]
        if but_note:
            return [name for name in names if not self._is_note(name)] + self.working(lease_id) + groups
        return names + [f"process {process.pid}" for process in self._processes(lease_id)] + groups

    def _is_note(self, name: str) -> bool:
        """Whether a machine's folder holds no more than what became of it."""
        state = read_json(self.root / name / "state.json") or {}
        with contextlib.suppress(FileNotFoundError):  # just gone
            return state.get("state") == "terminated" and set(os.listdir(self.root / name)) <= _NOTE  # noqa: PTH208
        return True

    def fingerprint(self, machine: Machine) -> Any:
        return machine.endpoint, sorted(self._processes(machine.ref.lease_id or ""))

    @property
    def _prefix(self) -> str:
        return group_prefix(Root(self.root))

    def _processes(self, lease_id: str) -> list[processes.Process]:
        found = processes.strays(str(self.root), self._prefix)
        return [process for name, members in found.items() if f"{lease_id}-" in name for process in members]
