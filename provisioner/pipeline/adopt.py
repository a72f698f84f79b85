"""Adopt: a lease that another process began, and left, goes on here."""

from __future__ import annotations

from dataclasses import replace

from provisioner import retry
from provisioner.errors import ConfigError, NotFoundError
from provisioner.models import Expect, Lease, Machine, MachineState, Scope
from provisioner.pipeline.base import Env
from provisioner.pipeline.engine import Ending
from provisioner.pipeline.place import held
from provisioner.pipeline.release import Release
from provisioner.providers.base import AccessSource, Provider
from provisioner.remote.keys import generate_keypair
from provisioner.store import LeaseStore

_CONTROLLER_IS_THERE_S = 45.0


def find_machine(provider: Provider, lease_id: str) -> Machine:
    """The machine of a lease.

    Args:
        provider: Where to look.
        lease_id: The lease.

    Returns:
        The machine that runs; else whichever is still shown.

    Raises:
        NotFoundError: There is none.
        GpuRunnerError: A part of the inventory could not be read, and no machine was in the rest.
    """
    inventory = provider.inventory(Scope(lease_id=lease_id))
    machines = sorted(inventory.machines, key=lambda m: m.state is not MachineState.RUNNING)
    if machines:
        return machines[0]
    if inventory.unread:
        raise inventory.unread[0].error
    raise NotFoundError(f"there is no machine of lease {lease_id}", resolution="see which there are: gpu-runner list")


def open_key(provider: Provider, store: LeaseStore, machine: Machine) -> str:
    """A private key that the machine lets in: the one kept here, or a new one where the provider can add it.

    Args:
        provider: Where the machine is.
        store: The state folder.
        machine: Which.

    Returns:
        OpenSSH PEM.

    Raises:
        ConfigError: There is no way in from here.
    """
    holder = machine.lease.holder if machine.lease else ""
    key = store.key(machine.ref.lease_id or "", holder)
    if key is not None:
        return key
    if isinstance(provider, AccessSource):
        pair = generate_keypair()
        provider.grant_access(machine.ref, pair.public_key_line)
        return pair.private_key_pem
    raise ConfigError(
        f"the key of lease {machine.ref.lease_id} is not on this disk",
        resolution="run this where the lease was made, or set GPU_RUNNER_STATE_DIR to that state folder",
    )


class Adopt:
    """Takes over the machine of a lease whose controller has gone.

    Args:
        env: The collaborators.
        machine: The machine as it was found.
        lease: Its lease, with our own holder.
        release: Is armed once the machine is ours.
        take_over: Whether to take it even from a controller that is alive.

    Attributes:
        machine: The machine; only after ``run``.
        private_key: What opens it; only after ``run``.
    """

    name = "adopt"

    def __init__(self, env: Env, machine: Machine, lease: Lease, release: Release, *, take_over: bool) -> None:
        self._env = env
        self._found = machine
        self._lease = lease
        self._release = release
        self._take_over = take_over
        self.machine: Machine | None = None
        self.private_key = ""

    def run(self) -> None:
        """Become the holder.

        Raises:
            LeaseHeldError: Its controller is alive.
        """
        seen_s = self._found.controller_seen_s
        if seen_s is not None and seen_s < _CONTROLLER_IS_THERE_S and not self._take_over:
            raise held(self._found)
        env, lease = self._env, self._lease
        self.private_key = open_key(env.provider, env.store, self._found)
        env.store.save_key(lease.id, lease.holder, self.private_key)
        old_holder = self._found.lease.holder if self._found.lease else None
        expect = Expect(lease.id, old_holder)
        self._release.arm()
        self._release.made(self._found.ref)
        retry.call(lambda: env.provider.adopt(self._found.ref, expect, lease.holder), clock=env.clock)
        if old_holder is not None:
            env.store.forget(lease.id, old_holder)
        self.machine = replace(self._found, lease=lease)
        env.timeline.mark("placed_s")

    def cleanup(self, ending: Ending) -> None:
        """Nothing of its own."""
