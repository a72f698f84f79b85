"""The end of a lease, and the proof of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from provisioner import retry
from provisioner.clock import Clock, Deadline
from provisioner.errors import GpuRunnerError, NotFoundError, RefusedError
from provisioner.models import Expect, Inventory, Lease, Machine, MachineRef, Scope
from provisioner.pipeline.base import Env
from provisioner.pipeline.engine import Ending
from provisioner.pipeline.observer import Observer
from provisioner.providers.base import Provider

T = TypeVar("T")


@dataclass(frozen=True)
class ReleaseResult:
    """What is known at the end of a release.

    Attributes:
        confirmed: Nothing of the lease is left: no machine, no residue, and nothing unread.
        billing_stopped: The provider shows that no compute of the lease is billed any more.
        seconds: How long it took.
        left: What may still be there, for people.
        kept_for_s: Seconds that a machine was left on purpose (``--detach``, ``--keep-on-failure``); else None.
    """

    confirmed: bool
    billing_stopped: bool
    seconds: float
    left: tuple[str, ...] = ()
    kept_for_s: float | None = None


class Release:
    """The step whose clean-up ends the lease. It comes first, so that its clean-up comes last.

    Args:
        env: The collaborators.
        lease: The lease to end.

    Attributes:
        in_doubt: Whether a create call may still have an effect.
        result: How it went; only after ``cleanup``, and only if there was something to release.
    """

    name = "release"

    def __init__(self, env: Env, lease: Lease) -> None:
        self._env = env
        self._lease = lease
        self._armed = False
        self._made: list[MachineRef] = []
        self.in_doubt = False
        self.result: ReleaseResult | None = None

    def run(self) -> None:
        """Nothing yet: nothing has been made."""

    def arm(self) -> None:
        """From now on there may be something to end."""
        self._armed = True

    def made(self, ref: MachineRef) -> None:
        """This is there to end, also where it cannot be listed then."""
        self._made.append(ref)

    def cleanup(self, ending: Ending) -> None:
        """End the lease, unless it is to be left."""
        if ending is Ending.LEAVE or not self._armed:
            return
        env, lease = self._env, self._lease
        env.observer.step(self.name, lease.id)
        releaser = Releaser(
            env.provider, env.clock, env.observer, lease_id=lease.id, holder=lease.holder, made=self._made
        )
        self.result = releaser.release(in_doubt=self.in_doubt)
        env.timeline.mark("released_s")
        if self.result.confirmed:
            env.store.forget(lease.id, lease.holder)


class Releaser:
    """Ends everything that one lease holds, on its own clock; listens to no cancel.

    Args:
        provider: Where the machine is.
        clock: Time.
        observer: Who watches.
        lease_id: Whose things end.
        holder: Only machines of this holder are touched; None for any (an explicit order by a person).
        made: Machines that are ended also when they cannot be listed.
    """

    def __init__(
        self,
        provider: Provider,
        clock: Clock,
        observer: Observer,
        *,
        lease_id: str,
        holder: str | None,
        made: Sequence[MachineRef] = (),
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._observer = observer
        self._lease_id = lease_id
        self._holder = holder
        self._made = made
        self._problem = ""

    def release(self, *, in_doubt: bool = False) -> ReleaseResult:
        """Terminate and wait for the proof.

        Args:
            in_doubt: Whether a create call may still have an effect; then an empty listing is believed only after
                the provider's grace for things that appear late.

        Returns:
            What is known; never raises for a machine that does not end.
        """
        started_s = self._clock.elapsed_s()
        traits = self._provider.traits
        deadline = Deadline.after(self._clock, traits.release_timeout_s)
        believe_empty = Deadline.after(self._clock, traits.not_found_grace_s if in_doubt else 0)
        wait_s = traits.poll_s
        while True:
            inventory = self._inventory()
            self._end_unlisted(inventory)
            if inventory is not None:
                self._end(inventory)
                inventory = self._inventory()
            left = self._left(inventory)
            proven = not left and believe_empty.passed()
            if proven or deadline.passed():
                break
            self._clock.sleep(wait_s)
            wait_s = min(wait_s * 1.5, max(5.0, traits.poll_s))
        return ReleaseResult(
            confirmed=proven,
            billing_stopped=proven or (bool(left) and self._billing_stopped(inventory)),
            seconds=self._clock.elapsed_s() - started_s,
            left=tuple(left),
        )

    def _inventory(self) -> Inventory | None:
        return self._try(lambda: self._provider.inventory(Scope(lease_id=self._lease_id)))

    def _end_unlisted(self, inventory: Inventory | None) -> None:
        """Where not everything could be read, what was made here is ended unseen."""
        if inventory is not None and not inventory.unread:
            return
        listed = {machine.ref.id for machine in inventory.machines} if inventory is not None else set()
        for ref in self._made:
            if ref.id not in listed:
                self._try(partial(self._provider.terminate, ref, Expect(self._lease_id, self._holder)))

    def _end(self, inventory: Inventory) -> None:
        expect = Expect(self._lease_id, self._holder)
        for machine in self._ours(inventory):
            if machine.alive:
                self._try(partial(self._mark, machine.ref, expect))
            self._try(partial(self._provider.terminate, machine.ref, expect))
        if not self._foreign(inventory):
            for residue in inventory.residue:
                self._try(partial(self._provider.remove_residue, residue.id, residue.kind))

    def _mark(self, ref: MachineRef, expect: Expect) -> None:
        with contextlib.suppress(NotFoundError):
            self._provider.mark_releasing(ref, expect)

    def _ours(self, inventory: Inventory) -> list[Machine]:
        foreign = self._foreign(inventory)
        return [machine for machine in inventory.machines if machine not in foreign]

    def _foreign(self, inventory: Inventory) -> list[Machine]:
        if self._holder is None:
            return []
        return [m for m in inventory.machines if m.lease is not None and m.lease.holder != self._holder]

    def _left(self, inventory: Inventory | None) -> list[str]:
        if inventory is None:
            return [f"unknown: {self._problem}"]
        left = [f"machine {m.ref.id} in {m.ref.region} is {m.state}" for m in self._ours(inventory) if m.alive]
        if not self._foreign(inventory):
            left += [f"{r.kind} {r.id} in {r.region}" for r in inventory.residue]
        left += [f"{u.scope} could not be read: {u.error.brief}" for u in inventory.unread]
        if left and self._problem:
            left.append(f"last error: {self._problem}")
        return left

    def _billing_stopped(self, inventory: Inventory | None) -> bool:
        if inventory is None or inventory.unread:
            return False
        return all(m.billing_stopped or not m.alive for m in self._ours(inventory))

    def _try(self, action: Callable[[], T]) -> T | None:
        try:
            return retry.call(action, clock=self._clock, attempts=3)
        except RefusedError as error:
            self._observer.warning(f"left alone: {error.brief}")
        except GpuRunnerError as error:
            self._problem = error.brief
        return None
