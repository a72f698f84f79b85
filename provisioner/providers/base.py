"""The contract of a provider. ``tests/contract`` holds every provider to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from provisioner.models import Check, Expect, Inventory, LaunchIntent, Machine, MachineRef, Offer, Scope


@dataclass(frozen=True)
class Traits:
    """What differs between providers, as data.

    Attributes:
        poweroff_ends: What a poweroff from inside ends: of ``compute``, ``disk``, ``address``, ``quota``.
        native_deadline: Whether the provider itself ends a machine at its hard deadline.
        boot_allowance_s: Time from placing to the start of the job that a lease is given on top of the job's timeout.
        collect_allowance_s: Time for the artifacts and the release, likewise.
        fuse_s: Default fuse.
        poll_s: How often a state is asked for while one waits.
        watch_s: How often the machine of a running job is looked at.
        reconnect_for_s: How long a lost SSH connection is tried again before the machine counts as lost.
        release_timeout_s: How long the proof of a release is waited for.
        confirm_after_s: Least time between two readings that must agree before a suspect is removed.
        not_found_grace_s: NotFound this long after an accepted create means gone (eventual consistency).
        max_age_s: A machine whose tags cannot be read is removed at this age.
        leaves_note: Whether an ended machine leaves a note that cleanup removes; a cloud's list forgets by itself.
    """

    poweroff_ends: frozenset[str]
    native_deadline: bool
    boot_allowance_s: float
    collect_allowance_s: float
    fuse_s: float = 600.0
    poll_s: float = 5.0
    watch_s: float = 15.0
    reconnect_for_s: float = 300.0
    release_timeout_s: float = 600.0
    confirm_after_s: float = 60.0
    not_found_grace_s: float = 300.0
    max_age_s: float = 7 * 86400.0
    leaves_note: bool = False


class Provider(Protocol):
    """Few verbs. Every one is safe to repeat, and may be called from several threads and processes at once."""

    name: ClassVar[str]
    traits: ClassVar[Traits]

    def launch(self, intent: LaunchIntent) -> MachineRef:
        """Ask for a machine; returns when the provider has accepted, not when it is ready.

        The same attempt is the same machine, also when two callers ask at once. Tags, deadline and fuse are part of
        the create call itself. A failure after acceptance comes out of ``describe``.

        Args:
            intent: What to make.

        Returns:
            How to find it.

        Raises:
            CapacityError: No stock here: try the next offer.
            QuotaError: A quota is used up.
            AuthError: Nothing will work with these credentials.
            ConfigError: The request is wrong.
            LeaseHeldError: The machine of this attempt exists and has another holder.
            TransientError: Nothing was made; the same call may be made again.
            InDoubtError: A machine may have been made: look it up.
        """
        ...

    def describe(self, ref: MachineRef) -> Machine:
        """What the provider says of one machine, now.

        Args:
            ref: Which.

        Returns:
            Its state, which may be UNKNOWN.

        Raises:
            NotFoundError: The provider does not know it (no longer, or not yet).
            AuthError: Not allowed to look.
            TransientError: Could not look.
        """
        ...

    def inventory(self, scope: Scope) -> Inventory:
        """Everything of ours that is there, in every region and on every page, and what could not be read.

        Needs no state from the process that made it. Never raises for a part that cannot be read: that part is listed
        in ``unread``.

        Args:
            scope: What to look for.

        Returns:
            Machines (terminated ones while the provider still shows them), residue, unread parts.
        """
        ...

    def mark_releasing(self, ref: MachineRef, expect: Expect) -> None:
        """Set the tag ``releasing``: a request to the controller that holds it, and a note for everybody else.

        Args:
            ref: Which.
            expect: What its tags must say.

        Raises:
            RefusedError: It carries another lease or holder.
            NotFoundError: It is not there.
        """
        ...

    def adopt(self, ref: MachineRef, expect: Expect, holder: str) -> None:
        """Change the holder, if the tags are as expected (compare and set as far as the provider can).

        Args:
            ref: Which.
            expect: What its tags must say.
            holder: The new holder.

        Raises:
            RefusedError: It carries another lease or holder.
            NotFoundError: It is not there.
        """
        ...

    def terminate(self, ref: MachineRef, expect: Expect) -> None:
        """Ask for the end of a machine and of everything that was made with it.

        A request, not a proof: ``describe`` and ``inventory`` tell when it is gone. Ending what is gone is a success.

        Args:
            ref: Which.
            expect: What its tags must say.

        Raises:
            RefusedError: It carries another lease or holder.
            AuthError: Not allowed.
            TransientError: The request may not have arrived; repeat it.
        """
        ...

    def remove_residue(self, residue_id: str, kind: str) -> None:
        """Remove one left-over as ``inventory`` named it; one that is gone already is a success.

        Args:
            residue_id: The provider's id of it.
            kind: Its kind.

        Raises:
            TransientError: It could not be removed now.
        """
        ...


@runtime_checkable
class OfferSource(Protocol):
    """A provider that knows its offers itself (the bundled table knows those of the clouds)."""

    def offers(self) -> Sequence[Offer]:
        """What can be had there now.

        Returns:
            Offers, unsorted.
        """
        ...


@runtime_checkable
class AccessSource(Protocol):
    """A provider that can let a further key in, for ``ssh``, ``logs`` and ``attach`` from an empty disk."""

    def grant_access(self, ref: MachineRef, user_public_key: str) -> None:
        """Let one more key in.

        Args:
            ref: Which machine.
            user_public_key: OpenSSH public key line.

        Raises:
            NotFoundError: It is not there.
        """
        ...


@runtime_checkable
class CheckSource(Protocol):
    """A provider that can tell, before money is spent, whether it will work."""

    def checks(self) -> Sequence[Check]:
        """Look at credentials, quotas, tools: whatever a launch will need.

        Returns:
            One check for each; nothing is raised.
        """
        ...
