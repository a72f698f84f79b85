"""What most commands need: clock, providers, state folder, who we are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from provisioner import ci
from provisioner.clock import Clock, SystemClock
from provisioner.errors import GpuRunnerError, NotFoundError
from provisioner.models import Machine, Scope
from provisioner.providers import registry
from provisioner.providers.base import Provider
from provisioner.store import LeaseStore, state_dir


@dataclass(frozen=True)
class App:
    """The collaborators of a command.

    Attributes:
        clock: Time.
        store: The state folder.
        identity: Who asks.
    """

    clock: Clock
    store: LeaseStore
    identity: ci.Identity

    @classmethod
    def from_environment(cls) -> App:
        """The real ones."""
        return cls(SystemClock(), LeaseStore(state_dir(os.environ)), ci.identify(os.environ))

    def providers(self, names: Sequence[str] = ()) -> list[Provider]:
        """Providers by name.

        Args:
            names: Which; none for all.

        Returns:
            Ready to use.
        """
        return [registry.create(name, self.clock) for name in (names or registry.names())]


@dataclass(frozen=True)
class Found:
    """A machine, and the provider that knows it."""

    provider: Provider
    machine: Machine


def find(app: App, lease_id: str, names: Sequence[str] = ()) -> Found:
    """Look a lease's machine up at all providers.

    Args:
        app: The collaborators.
        lease_id: Which lease.
        names: Providers to ask; none for all.

    Returns:
        The machine, the one that runs before others.

    Raises:
        NotFoundError: No provider knows it, and all could be read.
        GpuRunnerError: Not found, and some part could not be read.
    """
    unread: list[GpuRunnerError] = []
    found: list[Found] = []
    for provider in app.providers(names):
        inventory = provider.inventory(Scope(lease_id=lease_id))
        found += [Found(provider, machine) for machine in inventory.machines]
        unread += [part.error for part in inventory.unread]
    if found:
        return min(found, key=lambda f: not (f.machine.alive and f.machine.endpoint is not None))
    if unread:
        raise unread[0]
    raise NotFoundError(f"there is no machine of lease {lease_id}", resolution="see which there are: gpu-runner list")


def lease_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument LEASE, completed from what is known on this disk."""
    return click.argument("lease", metavar="LEASE", shell_complete=complete_lease)(function)


def complete_lease(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
    """Lease ids for shell completion."""
    names = LeaseStore(state_dir(os.environ)).lease_ids()
    return [name for name in names if name.startswith(incomplete)]


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else.")
provider_option = click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    type=click.Choice(registry.names()),
    help="Only this provider. Repeatable. Default: all.",
)


def with_holder(machine: Machine, holder: str) -> Machine:
    """The machine as it will be once another holder has it."""
    return machine if machine.lease is None else replace(machine, lease=replace(machine.lease, holder=holder))
