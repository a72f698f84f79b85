"""What outlived its lease, and its removal. Needs no state of the process that created it.

What is past its hard deadline goes at once, whoever owns it. What is merely suspicious goes only within its owner, and
only when a second reading, a minimum time later, agrees. What could not be read is reported, never taken for nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from provisioner import retry
from provisioner.clock import Clock
from provisioner.errors import GpuRunnerError
from provisioner.models import (
    Expect,
    Inventory,
    Lease,
    Machine,
    MachineState,
    OnControllerLoss,
    Residue,
    Scope,
    Unread,
)
from provisioner.providers.base import Provider, Traits


class Verdict(str, enum.Enum):
    """What is to become of a thing."""

    KEEP = "keep"
    SUSPECT = "suspect"
    REMOVE = "remove"

    __str__ = str.__str__


@dataclass(frozen=True)
class Finding:
    """One thing, and what was decided about it.

    Attributes:
        provider: Where it is.
        kind: ``machine``, or the kind of residue.
        id: The provider's id.
        region: Where it is.
        lease_id: Whose it is; None when that cannot be read.
        verdict: The decision.
        reason: Why, for people.
        machine: The machine, if it is one.
    """

    provider: str
    kind: str
    id: str
    region: str
    lease_id: str | None
    verdict: Verdict
    reason: str
    machine: Machine | None = None


@dataclass(frozen=True)
class Failure:
    """Something that should be gone and could not be removed."""

    finding: Finding
    error: GpuRunnerError


@dataclass(frozen=True)
class CleanupReport:
    """What a cleanup did.

    Attributes:
        removed: Removed, and with ``dry_run`` what would be.
        kept: Looked at and left.
        failed: Could not be removed.
        unread: Parts that could not be read.
    """

    removed: tuple[Finding, ...] = ()
    kept: tuple[Finding, ...] = ()
    failed: tuple[Failure, ...] = ()
    unread: tuple[Unread, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing that should be gone may still be there."""
        return not self.failed and not self.unread

    def __add__(self, other: CleanupReport) -> CleanupReport:
        return CleanupReport(
            self.removed + other.removed,
            self.kept + other.kept,
            self.failed + other.failed,
            self.unread + other.unread,
        )


def judge_machine(machine: Machine, owner: str, traits: Traits) -> tuple[Verdict, str]:
    """Decide about one machine from one reading.

    Args:
        machine: The machine.
        owner: Who asks.
        traits: Of its provider.

    Returns:
        The verdict, and why.
    """
    if machine.state is MachineState.TERMINATED:
        return _judge_ended(machine, owner, traits)
    left_s = machine.hard_deadline_in_s()
    if left_s is not None and left_s <= 0:
        return Verdict.REMOVE, f"past its hard deadline by {-left_s:.0f} s"
    if machine.lease is None:
        return _judge_untagged(machine, traits)
    if machine.lease.owner != owner:
        return Verdict.KEEP, f"belongs to {machine.lease.owner}"
    reason = _suspicion(machine, machine.lease)
    if reason:
        return Verdict.SUSPECT, reason
    return Verdict.KEEP, "its lease is live" if left_s is not None else "its age is unknown"


def _judge_ended(machine: Machine, owner: str, traits: Traits) -> tuple[Verdict, str]:
    if traits.leaves_note and machine.lease is not None and machine.lease.owner == owner:
        return Verdict.REMOVE, f"has ended ({machine.reason or 'it does not say why'}); its note goes too"
    return Verdict.KEEP, "has ended; the provider still lists it"


def _judge_untagged(machine: Machine, traits: Traits) -> tuple[Verdict, str]:
    if machine.age_s is not None and machine.age_s >= traits.max_age_s:
        return Verdict.REMOVE, f"its tags cannot be read, and it is {machine.age_s / 86400:.1f} days old"
    return Verdict.KEEP, "its tags cannot be read; removed once it is old enough"


def _suspicion(machine: Machine, lease: Lease) -> str:
    """Why a machine of our own looks like an orphan; empty if it does not. An unknown state is no reason."""
    seen_s, age_s = machine.controller_seen_s, machine.age_s
    lost = seen_s is not None and seen_s > lease.heartbeat_timeout_s
    if machine.state is MachineState.STOPPED:
        return machine.reason or "has stopped and was not released"
    if lost and lease.on_controller_loss is OnControllerLoss.END:
        return f"its controller has not been heard of for {seen_s:.0f} s"
    if machine.state is MachineState.PENDING and age_s is not None and age_s > lease.fuse_s:
        return f"still not running {age_s:.0f} s after its creation"
    if machine.releasing and lost:
        return "its release was begun and not finished"
    return ""


def judge_residue(residue: Residue, staying: Iterable[Machine]) -> tuple[Verdict, str]:
    """Decide about one left-over from one reading.

    Args:
        residue: The left-over.
        staying: The machines of that reading that are alive and not about to go.

    Returns:
        The verdict, and why.
    """
    if residue.lease_id is not None and any(machine.ref.lease_id == residue.lease_id for machine in staying):
        return Verdict.KEEP, "its lease has a live machine"
    return Verdict.SUSPECT, "its lease has no machine"


def plan(provider: Provider, inventory: Inventory, owner: str) -> list[Finding]:
    """Decide about everything in one reading.

    Args:
        provider: Where it is.
        inventory: The reading.
        owner: Who asks.

    Returns:
        One finding for each thing.
    """
    findings = []
    for machine in inventory.machines:
        verdict, reason = judge_machine(machine, owner, provider.traits)
        ref = machine.ref
        findings.append(
            Finding(provider.name, "machine", ref.id, ref.region, ref.lease_id, verdict, reason, machine=machine)
        )
    staying = [f.machine for f in findings if f.machine is not None and f.machine.alive and f.verdict is Verdict.KEEP]
    for residue in inventory.residue:
        verdict, reason = judge_residue(residue, staying)
        findings.append(
            Finding(provider.name, residue.kind, residue.id, residue.region, residue.lease_id, verdict, reason)
        )
    return findings


def clean(provider: Provider, *, owner: str, clock: Clock, dry_run: bool = False) -> CleanupReport:
    """Find and remove what outlived its lease, at one provider.

    Args:
        provider: Where to look.
        owner: Who asks: only within this owner is suspicion enough.
        clock: Time.
        dry_run: Remove nothing; the report tells what would go.

    Returns:
        What was found and done; errors are in it, not raised.
    """
    first = provider.inventory(Scope())
    findings = plan(provider, first, owner)
    unread = first.unread
    if any(finding.verdict is Verdict.SUSPECT for finding in findings):
        clock.sleep(provider.traits.confirm_after_s)
        second = provider.inventory(Scope())
        findings = _confirmed(findings, plan(provider, second, owner))
        unread += second.unread
    doomed = [finding for finding in findings if finding.verdict is Verdict.REMOVE]
    kept = tuple(finding for finding in findings if finding.verdict is not Verdict.REMOVE)
    if dry_run:
        return CleanupReport(removed=tuple(doomed), kept=kept, unread=unread)
    removed, failed = _remove_all(provider, doomed, clock)
    return CleanupReport(removed, kept, failed, unread)


def sweep_expired(provider: Provider, *, owner: str, clock: Clock) -> CleanupReport:
    """Remove this owner's machines that are past their hard deadline: what each ``run`` does first, in passing.

    Args:
        provider: Where to look.
        owner: Whose machines.
        clock: Time.

    Returns:
        What was done.
    """
    inventory = provider.inventory(Scope())
    expired = [
        finding
        for finding in plan(provider, inventory, owner)
        if finding.verdict is Verdict.REMOVE
        and finding.machine is not None
        and finding.machine.alive  # the note of one that ended is for whoever waits for it
        and finding.machine.lease is not None
        and finding.machine.lease.owner == owner
    ]
    removed, failed = _remove_all(provider, expired, clock)
    return CleanupReport(removed=removed, failed=failed, unread=inventory.unread)


def _confirmed(first: Sequence[Finding], second: Sequence[Finding]) -> list[Finding]:
    """The second reading, in which a suspect of both is to be removed, and a new suspect is left for next time."""
    suspected = {(finding.kind, finding.id) for finding in first if finding.verdict is not Verdict.KEEP}
    return [
        _with_verdict(finding, Verdict.REMOVE if (finding.kind, finding.id) in suspected else Verdict.KEEP)
        if finding.verdict is Verdict.SUSPECT
        else finding
        for finding in second
    ]


def _with_verdict(finding: Finding, verdict: Verdict) -> Finding:
    note = "" if verdict is Verdict.REMOVE else "; seen for the first time"
    return replace(finding, verdict=verdict, reason=finding.reason + note)


def _remove_all(
    provider: Provider, doomed: Sequence[Finding], clock: Clock
) -> tuple[tuple[Finding, ...], tuple[Failure, ...]]:
    removed, failed = [], []
    for finding in doomed:
        try:
            retry.call(partial(_remove, provider, finding), clock=clock, attempts=3)
            removed.append(finding)
        except GpuRunnerError as error:
            failed.append(Failure(finding, error))
    return tuple(removed), tuple(failed)


def _remove(provider: Provider, finding: Finding) -> None:
    if finding.machine is None:
        provider.remove_residue(finding.id, finding.kind)
        return
    lease = finding.machine.lease
    provider.terminate(finding.machine.ref, Expect(finding.lease_id, lease.holder if lease else None))
