"""Doubles of the outside world that are ours to define: time, and a cloud that keeps everything in memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import ClassVar

from provisioner.errors import GpuRunnerError, InDoubtError, LeaseHeldError, NotFoundError, RefusedError
from provisioner.models import (
    Endpoint,
    Expect,
    Inventory,
    LaunchIntent,
    Machine,
    MachineRef,
    MachineState,
    Residue,
    Scope,
    Unread,
)
from provisioner.providers.base import Traits

_EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeClock:
    """A clock that moves only when told to, or by exactly what is waited for.

    Args:
        auto: Whether a wait moves the clock and returns at once; otherwise it blocks until somebody calls ``advance``.
    """

    def __init__(self, *, auto: bool = True) -> None:
        self._auto = auto
        self._now_s = 1000.0
        self._wall_offset_s = 0.0
        self._moved = threading.Condition()
        self.waits_s: list[float] = []

    def elapsed_s(self) -> float:
        with self._moved:
            return self._now_s

    def utc(self) -> datetime:
        with self._moved:
            return _EPOCH + timedelta(seconds=self._now_s + self._wall_offset_s)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._moved:
            self._now_s += seconds
            self._moved.notify_all()

    def set_wall(self, jump_s: float) -> None:
        """Set the wall clock wrong; elapsed time does not notice."""
        self._wall_offset_s += jump_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits_s.append(timeout_s)
        if self._auto:
            if not event.is_set() and timeout_s > 0:
                self.advance(timeout_s)
                time.sleep(0)  # other threads get their turn
            return event.is_set()
        end_s = self.elapsed_s() + timeout_s
        while not event.is_set() and self.elapsed_s() < end_s:
            with self._moved:
                self._moved.wait(0.01)  # an event has no way to tell a condition
        return event.is_set()

    def sleep(self, seconds: float) -> None:
        self.wait(threading.Event(), seconds)


@dataclass
class FakeMachine:
    """A machine of the fake cloud; a test may change it at will.

    Attributes:
        told: What is told of it, but for its age and the state that follows from it.
        created_s: When it was made, on the clock.
        boots_s: How long it is pending.
        hidden_s: How long after its creation no listing shows it.
        immortal: Whether it takes no notice of its end.
    """

    told: Machine
    created_s: float
    boots_s: float = 3.0
    hidden_s: float = 0.0
    immortal: bool = False


@dataclass(frozen=True)
class LostAnswer:
    """A create call whose answer does not arrive.

    Attributes:
        made: Whether it had an effect.
        hidden_s: How long no listing shows that.
    """

    made: bool
    hidden_s: float = 0.0


class FakeProvider:
    """A whole provider in memory, which does what a test tells it to.

    Args:
        clock: Ages are told on it.

    Attributes:
        machines: By id.
        launches: What the next create calls do: raise, lose their answer, or (None) succeed; then all succeed.
        terminate_errors: What the next requests to end raise.
        inventory_errors: What the next listings raise.
        late_failures: What the next machines fail with after their creation was accepted.
        unread: Parts that no listing can read.
        calls: Names of the verbs that were called, but for looks.
    """

    name: ClassVar[str] = "fake"
    traits: ClassVar[Traits] = Traits(
        poweroff_ends=frozenset(),
        native_deadline=False,
        boot_allowance_s=120.0,
        collect_allowance_s=60.0,
        poll_s=1.0,
        release_timeout_s=100.0,
        confirm_after_s=60.0,
        not_found_grace_s=30.0,
        max_age_s=86400.0,
    )

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.machines: dict[str, FakeMachine] = {}
        self.residue: list[Residue] = []
        self.launches: deque[GpuRunnerError | LostAnswer | None] = deque()
        self.terminate_errors: deque[GpuRunnerError] = deque()
        self.inventory_errors: deque[GpuRunnerError] = deque()
        self.late_failures: deque[GpuRunnerError | None] = deque()
        self.unread: tuple[Unread, ...] = ()
        self.calls: list[str] = []

    def add(self, machine: Machine, *, age_s: float = 10.0) -> FakeMachine:
        """Put a machine there."""
        made = FakeMachine(machine, self._clock.elapsed_s() - age_s)
        self.machines[machine.ref.id] = made
        return made

    def launch(self, intent: LaunchIntent) -> MachineRef:
        self.calls.append(f"launch {intent.name}")
        step = self.launches.popleft() if self.launches else None
        if isinstance(step, GpuRunnerError):
            raise step
        ref = MachineRef(self.name, intent.offer.region, intent.name, intent.lease.id)
        if isinstance(step, LostAnswer):
            if step.made:
                self._make(ref, intent).hidden_s = step.hidden_s
            raise InDoubtError("the answer was lost")
        there = self.machines.get(ref.id)
        if there is None:
            self._make(ref, intent)
        elif there.told.lease is None or there.told.lease.holder != intent.lease.holder:
            raise LeaseHeldError("somebody else's")
        return ref

    def _make(self, ref: MachineRef, intent: LaunchIntent) -> FakeMachine:
        failure = self.late_failures.popleft() if self.late_failures else None
        endpoint = Endpoint("192.0.2.1", 22, "user", "ssh-ed25519 AAAA")
        told = Machine(
            ref,
            MachineState.RUNNING,
            intent.lease,
            attempt=intent.attempt,
            endpoint=endpoint,
            offer=intent.offer,
            failure=failure,
        )
        return self.add(told, age_s=0.0)

    def describe(self, ref: MachineRef) -> Machine:
        if ref.id not in self.machines:
            raise NotFoundError(f"no {ref.id}")
        return self._tell(self.machines[ref.id])

    def _tell(self, machine: FakeMachine) -> Machine:
        age_s = self._clock.elapsed_s() - machine.created_s
        told = replace(machine.told, age_s=age_s)
        if told.state is MachineState.RUNNING and age_s < machine.boots_s:
            return replace(told, state=MachineState.PENDING, endpoint=None)
        return told

    def inventory(self, scope: Scope) -> Inventory:
        if self.inventory_errors:
            raise self.inventory_errors.popleft()
        wanted = (None, scope.lease_id) if scope.lease_id else None
        machines = tuple(
            self._tell(machine)
            for machine in self.machines.values()
            if (wanted is None or machine.told.ref.lease_id in wanted)
            and self._clock.elapsed_s() - machine.created_s >= machine.hidden_s
        )
        residue = tuple(left for left in self.residue if wanted is None or left.lease_id in wanted)
        return Inventory(machines, residue, self.unread)

    def mark_releasing(self, ref: MachineRef, expect: Expect) -> None:
        self.calls.append(f"mark {ref.id}")
        machine = self._expected(ref, expect)
        machine.told = replace(machine.told, releasing=True)

    def adopt(self, ref: MachineRef, expect: Expect, holder: str) -> None:
        self.calls.append(f"adopt {ref.id}")
        machine = self._expected(ref, expect)
        assert machine.told.lease is not None
        machine.told = replace(machine.told, lease=replace(machine.told.lease, holder=holder))

    def terminate(self, ref: MachineRef, expect: Expect) -> None:
        self.calls.append(f"terminate {ref.id}")
        if self.terminate_errors:
            raise self.terminate_errors.popleft()
        if ref.id in self.machines and not self._expected(ref, expect).immortal:
            del self.machines[ref.id]

    def remove_residue(self, residue_id: str, kind: str) -> None:
        self.calls.append(f"remove {residue_id}")
        self.residue = [left for left in self.residue if (left.id, left.kind) != (residue_id, kind)]

    def _expected(self, ref: MachineRef, expect: Expect) -> FakeMachine:
        if ref.id not in self.machines:
            raise NotFoundError(f"no {ref.id}")
        machine = self.machines[ref.id]
        lease = machine.told.lease
        if expect.lease_id is not None and machine.told.ref.lease_id != expect.lease_id:
            raise RefusedError("another lease")
        if expect.holder is not None and (lease is None or lease.holder != expect.holder):
            raise RefusedError("another holder")
        return machine


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.logged = b""

    def step(self, name: str, detail: str = "") -> None:
        self.steps.append(f"{name} {detail}".strip())

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Nothing worth remembering."""

    def log(self, chunk: bytes) -> None:
        self.logged += chunk
