"""Place: from a list of offers to one machine that runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from provisioner import retry
from provisioner.clock import Deadline
from provisioner.errors import (
    BootError,
    CapacityError,
    ConfigError,
    GpuRunnerError,
    InDoubtError,
    LeaseHeldError,
    NotFoundError,
    QuotaError,
)
from provisioner.models import (
    Expect,
    LaunchIntent,
    LeaseRecord,
    Machine,
    MachineRef,
    MachineState,
    Offer,
    Scope,
)
from provisioner.pipeline.base import Env, JobRequest, wait_until
from provisioner.pipeline.engine import Ending
from provisioner.pipeline.release import Release

_ROUND_PAUSE_S = 15.0


@dataclass(frozen=True)
class Refusal:
    """One offer that could not be had, and what was said."""

    offer: Offer
    error: GpuRunnerError


class Place:
    """Walks the offers until a machine runs.

    Args:
        env: The collaborators.
        request: What is wanted.
        release: Is armed before the first create call.

    Attributes:
        machine: The machine that runs; only after ``run``.
        refusals: The offers that could not be had.
    """

    name = "place"

    def __init__(self, env: Env, request: JobRequest, release: Release) -> None:
        self._env = env
        self._request = request
        self._release = release
        self._attempt = 0
        self.private_key = request.private_key
        self.machine: Machine | None = None
        self.refusals: list[Refusal] = []

    def run(self) -> None:
        """Get the machine.

        Raises:
            LeaseHeldError: The lease has a machine of another holder.
            CapacityError: No offer could be had.
            BootError: The machine did not come up.
        """
        self._env.observer.step(self.name, self._request.lease.id)
        self._refuse_if_held()
        deadline = Deadline.after(self._env.clock, self._request.wait_capacity_s)
        while not self._walk():
            if deadline.remaining_s() <= _ROUND_PAUSE_S:
                raise no_capacity(self.refusals)
            self._env.observer.note(f"no capacity; going round again in {_ROUND_PAUSE_S:.0f} s")
            self._env.clock.wait(self._env.cancel.soft, _ROUND_PAUSE_S)
        self._env.timeline.mark("placed_s")

    def _walk(self) -> bool:
        """Try each offer once; whether one gave a machine."""
        self.refusals.clear()
        for offer in self._request.offers:
            self._env.cancel.check()
            try:
                self.machine = self._try_offer(offer)
            except CapacityError as error:
                self.refusals.append(Refusal(offer, error))
                self._env.observer.note(f"{_title(offer)}: {error.brief}")
                self._end_mine(self._listed())  # a failed attempt leaves nothing before the next is tried
            else:
                return True
        return False

    def cleanup(self, ending: Ending) -> None:
        """Nothing of its own: what it made is ended by the release."""

    def _refuse_if_held(self) -> None:
        for machine in self._listed():
            if machine.alive and (machine.lease is None or machine.lease.holder != self._request.lease.holder):
                raise held(machine)

    def _try_offer(self, offer: Offer) -> Machine:
        self._attempt += 1
        intent = LaunchIntent(
            lease=self._request.lease,
            attempt=self._attempt,
            offer=offer,
            ssh=self._request.ssh,
            image=self._request.image,
            disk_gib=self._request.disk_gib,
        )
        self._write_down(intent, None)
        self._release.arm()
        ref = self._launch(intent)
        self._release.made(ref)
        self._env.store.set_machine(self._request.lease.id, self._request.lease.holder, ref.id)
        return self._wait_running(self._one_survivor(ref))

    def _write_down(self, intent: LaunchIntent, machine_id: str | None) -> None:
        env, lease = self._env, self._request.lease
        env.store.save_key(lease.id, lease.holder, self._request.private_key)
        env.store.save(
            LeaseRecord(
                lease=lease,
                provider=env.provider.name,
                region=intent.offer.region,
                attempt=intent.attempt,
                machine_id=machine_id,
                started_at=env.clock.utc(),
                controller_pid=os.getpid(),
            )
        )

    def _launch(self, intent: LaunchIntent) -> MachineRef:
        self._release.in_doubt = True
        try:
            ref = retry.call(
                lambda: self._env.provider.launch(intent), clock=self._env.clock, cancel=self._env.cancel.soft
            )
        except InDoubtError:
            ref = self._look_up(intent)
        except GpuRunnerError:
            self._release.in_doubt = False
            raise
        self._release.in_doubt = False
        return ref

    def _look_up(self, intent: LaunchIntent) -> MachineRef:
        """Resolve a lost answer to *exists* or *absent* before anything else is tried."""
        found: list[Machine] = []

        def appeared() -> bool:
            found.extend(m for m in self._listed() if m.attempt == intent.attempt and m.alive)
            return bool(found)

        if wait_until(self._env, appeared, self._env.provider.traits.not_found_grace_s):
            return found[0].ref
        raise CapacityError("the create call's answer was lost, and no machine appeared")

    def _listed(self) -> list[Machine]:
        inventory = retry.call(
            lambda: self._env.provider.inventory(Scope(lease_id=self._request.lease.id)),
            clock=self._env.clock,
            cancel=self._env.cancel.soft,
        )
        if inventory.unread:
            raise inventory.unread[0].error
        return list(inventory.machines)

    def _one_survivor(self, ref: MachineRef) -> MachineRef:
        """At most one machine survives: keep the oldest, end the others."""
        alive = [m for m in self._listed() if m.alive]
        if not alive:
            return ref
        oldest = max(alive, key=lambda m: (m.age_s or 0.0, -(m.attempt or 0)))
        self._end_mine([machine for machine in alive if machine is not oldest])
        if oldest.lease is not None and oldest.lease.holder != self._request.lease.holder:
            raise held(oldest)
        return oldest.ref

    def _end_mine(self, machines: Sequence[Machine]) -> None:
        expect = Expect(self._request.lease.id, self._request.lease.holder)
        for machine in machines:
            if machine.lease is not None and machine.lease.holder == expect.holder:
                self._env.provider.terminate(machine.ref, expect)

    def _wait_running(self, ref: MachineRef) -> Machine:
        seen: list[Machine] = []

        def running() -> bool:
            with contextlib.suppress(NotFoundError):
                seen.append(self._described(ref))
                _raise_late_failure(seen[-1])
            return bool(seen) and seen[-1].state is MachineState.RUNNING and seen[-1].endpoint is not None

        allowance_s = self._env.provider.traits.boot_allowance_s
        if not wait_until(self._env, running, allowance_s):
            state = seen[-1].state if seen else MachineState.UNKNOWN
            raise BootError(
                f"machine {ref.id} did not start within {allowance_s:.0f} s",
                details=f"its last state was {state}",
            )
        return seen[-1]

    def _described(self, ref: MachineRef) -> Machine:
        return retry.call(lambda: self._env.provider.describe(ref), clock=self._env.clock, cancel=self._env.cancel.soft)


def held(machine: Machine) -> LeaseHeldError:
    """The error that tells whose machine stands in the way."""
    holder = machine.lease.holder[:8] if machine.lease else "unknown"
    lease_id = machine.ref.lease_id
    return LeaseHeldError(
        f"lease {lease_id} is held by another gpu-runner (holder {holder})",
        details=f"its machine {machine.ref.id} is {machine.state}",
        resolution=f"use another --lease-id, watch it with `gpu-runner logs -f {lease_id}`, "
        f"or end it with `gpu-runner down {lease_id}`",
    )


def no_capacity(refusals: Sequence[Refusal]) -> GpuRunnerError:
    """The answer to "no capacity anywhere": what was tried, and what each said."""
    if not refusals:
        return ConfigError("no offer to try", resolution="see what there is with `gpu-runner offers`")
    kind = QuotaError if all(isinstance(r.error, QuotaError) for r in refusals) else CapacityError
    lines = [f"{_title(r.offer)}: {r.error.brief}" for r in refusals]
    hints = sorted({r.error.resolution for r in refusals if r.error.resolution})
    return kind(
        f"no machine could be had ({len(refusals)} tried)",
        details="\n".join(lines),
        resolution="; ".join(hints) or "try other regions or types (`gpu-runner offers`)",
    )


def _title(offer: Offer) -> str:
    return f"{offer.provider} {offer.zone or offer.region} {offer.instance_type} {offer.market}"


def _raise_late_failure(machine: Machine) -> None:
    if machine.failure is not None:
        raise machine.failure
    if machine.state in {MachineState.TERMINATED, MachineState.STOPPED}:
        raise BootError(f"machine {machine.ref.id} ended while it started", details=machine.reason)
