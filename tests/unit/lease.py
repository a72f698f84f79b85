"""What the unit tests of the pipeline begin with: one lease, its parts, and a fake cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provisioner.cancel import Cancel
from provisioner.models import Lease, Machine, MachineRef, MachineState, Offer, OnControllerLoss, SshKeys
from provisioner.pipeline.base import Env, JobRequest, Timeline
from provisioner.providers.base import Provider
from provisioner.store import LeaseStore
from tests.fakes import FakeClock, FakeProvider, Notes

LEASE = Lease(
    id="gr-one",
    holder="me",
    owner="team",
    ttl_s=3600.0,
    fuse_s=600.0,
    heartbeat_timeout_s=900.0,
    idle_timeout_s=600.0,
    on_controller_loss=OnControllerLoss.END,
)
OFFERS = tuple(Offer("fake", region, "type", price_usd_hour=2.0) for region in ("here", "there", "elsewhere"))
SSH = SshKeys("ssh-ed25519 AAAA", "PEM", "ssh-ed25519 BBBB")


def machine(state: MachineState = MachineState.RUNNING, *, id: str = "gr-one-1", **more: Any) -> Machine:  # noqa: A002  # as in MachineRef
    """A machine of the lease, as a listing would tell of it."""
    lease = more.pop("lease", LEASE)
    lease_id = lease.id if lease is not None else None
    return Machine(MachineRef("fake", "here", id, lease_id), state, lease, **{"attempt": 1, "age_s": 10.0} | more)


def lease(**changes: Any) -> Lease:
    """The lease, but for some of it."""
    return replace(LEASE, **changes)


@dataclass(frozen=True)
class World:
    """A pipeline's collaborators, all in memory but for the state folder."""

    clock: FakeClock
    provider: FakeProvider
    cancel: Cancel
    notes: Notes
    store: LeaseStore
    env: Env

    @classmethod
    def at(cls, state: Path) -> World:
        """A new one with its state folder there."""
        clock, cancel, notes, store = FakeClock(), Cancel(), Notes(), LeaseStore(state)
        provider = FakeProvider(clock)
        checked: Provider = provider  # the type checker holds the fake to the contract
        return cls(clock, provider, cancel, notes, store, Env(checked, clock, cancel, notes, store, Timeline(clock)))

    def request(self, offers: Sequence[Offer] = OFFERS, **more: Any) -> JobRequest:
        """What a user wants."""
        return JobRequest(
            lease=LEASE,
            private_key="PEM",
            ssh=SSH,
            offers=offers,
            command=("true",),
            workdir=Path(),
            timeout_s=600.0,
            collect_allowance_s=60.0,
            output=Path("results"),
            **more,
        )
