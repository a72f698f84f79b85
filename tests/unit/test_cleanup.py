"""Cleanup: what goes at once, what only after a second look, and what it never touches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from provisioner.cleanup import Verdict, clean, judge_machine, judge_residue, plan, sweep_expired
from provisioner.errors import AuthError, TransientError
from provisioner.models import Lease, Machine, MachineRef, MachineState, OnControllerLoss, Residue, Scope, Unread
from tests.fakes import FakeProvider
from tests.unit.lease import LEASE, World, lease, machine

OWNER = LEASE.owner
TRAITS = FakeProvider.traits
FINISH = lease(on_controller_loss=OnControllerLoss.FINISH)
FOREIGN = lease(owner="another team")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.at(tmp_path)


def untagged(age_s: float | None) -> Machine:
    return Machine(MachineRef("fake", "here", "i-1", None), MachineState.RUNNING, None, age_s=age_s)


TABLE = [
    ("a live lease", machine(), Verdict.KEEP),
    ("its age is not known", machine(age_s=None), Verdict.KEEP),
    ("past its hard deadline", machine(age_s=3601.0), Verdict.REMOVE),
    ("somebody else's, past its hard deadline", machine(age_s=3601.0, lease=FOREIGN), Verdict.REMOVE),
    ("past it, and its state is not known", machine(MachineState.UNKNOWN, age_s=3601.0), Verdict.REMOVE),
    ("the controller was heard of", machine(controller_seen_s=899.0), Verdict.KEEP),
    ("the controller is lost", machine(controller_seen_s=901.0), Verdict.SUSPECT),
    ("the controller is lost, and its job may finish", machine(controller_seen_s=901.0, lease=FINISH), Verdict.KEEP),
    ("somebody else's controller is lost", machine(controller_seen_s=901.0, lease=FOREIGN), Verdict.KEEP),
    ("stopped", machine(MachineState.STOPPED), Verdict.SUSPECT),
    ("somebody else's, stopped", machine(MachineState.STOPPED, lease=FOREIGN), Verdict.KEEP),
    ("still pending", machine(MachineState.PENDING, age_s=599.0), Verdict.KEEP),
    ("pending for too long", machine(MachineState.PENDING, age_s=601.0), Verdict.SUSPECT),
    ("being released", machine(releasing=True, controller_seen_s=5.0), Verdict.KEEP),
    ("its release got stuck", machine(releasing=True, controller_seen_s=901.0, lease=FINISH), Verdict.SUSPECT),
    ("unknown is no reason", machine(MachineState.UNKNOWN), Verdict.KEEP),
    ("has ended", machine(MachineState.TERMINATED, age_s=3601.0), Verdict.KEEP),
    ("without tags, young", untagged(60.0), Verdict.KEEP),
    ("without tags, of unknown age", untagged(None), Verdict.KEEP),
    ("without tags, old", untagged(86_400.0), Verdict.REMOVE),
]


@pytest.mark.parametrize(("told", "verdict"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_one_reading(told: Machine, verdict: Verdict) -> None:
    found, reason = judge_machine(told, OWNER, TRAITS)
    assert found is verdict
    assert reason


def test_the_note_of_a_machine_that_ended_goes_where_it_is_ours_to_remove() -> None:
    notes = replace(TRAITS, leaves_note=True)
    ended = machine(MachineState.TERMINATED, reason="fuse: nobody came")
    verdict, reason = judge_machine(ended, OWNER, notes)
    assert verdict is Verdict.REMOVE
    assert "nobody came" in reason
    assert judge_machine(replace(ended, lease=FOREIGN), OWNER, notes)[0] is Verdict.KEEP


def test_residue_of_a_lease_with_a_living_machine_stays() -> None:
    left = Residue("fake", "here", "volume", "v1", "gr-one")
    assert judge_residue(left, [machine()])[0] is Verdict.KEEP
    assert judge_residue(left, [machine(lease=lease(id="gr-two"))])[0] is Verdict.SUSPECT
    assert judge_residue(replace(left, lease_id=None), [machine()])[0] is Verdict.SUSPECT


SECONDS = st.none() | st.floats(0, 1e6)
LEASES = st.builds(
    Lease,
    id=st.sampled_from(["gr-one", "gr-two"]),
    holder=st.sampled_from(["me", "you"]),
    owner=st.sampled_from([OWNER, "another team"]),
    ttl_s=st.floats(1, 1e6),
    fuse_s=st.floats(1, 1e4),
    heartbeat_timeout_s=st.floats(1, 1e4),
    idle_timeout_s=st.floats(1, 1e4),
    on_controller_loss=st.sampled_from(OnControllerLoss),
)
MACHINES = st.builds(
    lambda lease, state, age_s, seen_s, releasing: Machine(
        MachineRef("fake", "here", "m-1", lease.id if lease else None),
        state,
        lease,
        age_s=age_s,
        controller_seen_s=seen_s,
        releasing=releasing,
    ),
    lease=st.none() | LEASES,
    state=st.sampled_from(MachineState),
    age_s=SECONDS,
    seen_s=SECONDS,
    releasing=st.booleans(),
)


@given(told=MACHINES)
def test_one_reading_removes_only_what_is_past_its_time(told: Machine) -> None:
    verdict, _ = judge_machine(told, OWNER, TRAITS)
    left_s = told.hard_deadline_in_s()
    expired = left_s is not None and left_s <= 0
    old = told.lease is None and told.age_s is not None and told.age_s >= TRAITS.max_age_s
    assert (verdict is Verdict.REMOVE) == ((expired or old) and told.alive)


@given(told=MACHINES)
def test_what_is_somebody_elses_is_never_suspected(told: Machine) -> None:
    assume(told.lease is None or told.lease.owner != OWNER)
    assert judge_machine(told, OWNER, TRAITS)[0] is not Verdict.SUSPECT


@given(tags=LEASES, age=st.floats(0, 0.999), seen=st.none() | st.floats(0, 1), releasing=st.booleans())
def test_a_live_lease_with_a_living_controller_is_left_alone(
    tags: Lease, age: float, seen: float | None, *, releasing: bool
) -> None:
    seen_s = None if seen is None else seen * tags.heartbeat_timeout_s
    told = machine(lease=tags, age_s=age * tags.ttl_s, controller_seen_s=seen_s, releasing=releasing)
    assert judge_machine(told, OWNER, TRAITS)[0] is Verdict.KEEP


def test_a_suspect_goes_only_when_a_second_look_agrees(world: World) -> None:
    world.provider.add(machine(MachineState.STOPPED))
    began_s = world.clock.elapsed_s()
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert [finding.id for finding in report.removed] == ["gr-one-1"]
    assert world.clock.elapsed_s() - began_s >= TRAITS.confirm_after_s
    assert world.provider.machines == {}


def test_a_suspect_that_recovers_stays(world: World) -> None:
    made = world.provider.add(machine(MachineState.STOPPED))
    sleep = world.clock.sleep

    def comes_back(seconds: float) -> None:
        made.told = machine()
        sleep(seconds)

    world.clock.sleep = comes_back  # type: ignore[method-assign]  # something happens between the looks
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert report.removed == ()
    assert [*world.provider.machines] == ["gr-one-1"]


def test_residue_goes_together_with_the_machine_of_its_lease(world: World) -> None:
    world.provider.add(machine(), age_s=3601.0)
    world.provider.residue.append(Residue("fake", "here", "volume", "v1", "gr-one"))
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert [finding.id for finding in report.removed] == ["gr-one-1", "v1"]
    assert (world.provider.machines, world.provider.residue) == ({}, [])


def test_a_suspect_of_the_second_look_alone_waits_for_the_next_time(world: World) -> None:
    made = world.provider.add(machine())
    world.provider.residue.append(Residue("fake", "here", "volume", "v1", "gr-gone"))
    sleep = world.clock.sleep

    def stops(seconds: float) -> None:
        made.told = machine(MachineState.STOPPED)
        sleep(seconds)

    world.clock.sleep = stops  # type: ignore[method-assign]  # as above
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert [finding.id for finding in report.removed] == ["v1"]
    (kept,) = report.kept
    assert "first time" in kept.reason
    assert [*world.provider.machines] == ["gr-one-1"]


def test_without_a_suspect_there_is_no_waiting(world: World) -> None:
    world.provider.add(machine(age_s=0.0, lease=lease(ttl_s=1.0, owner="another team")))
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert [finding.id for finding in report.removed] == ["gr-one-1"]
    assert world.clock.waits_s == []


def test_a_dry_run_touches_nothing_and_tells_the_same(world: World) -> None:
    world.provider.add(machine(MachineState.STOPPED))
    report = clean(world.provider, owner=OWNER, clock=world.clock, dry_run=True)
    assert [finding.id for finding in report.removed] == ["gr-one-1"]
    assert world.provider.calls == []


def test_what_could_not_be_read_or_removed_is_reported_and_stops_nothing_else(world: World) -> None:
    for number in (1, 2):
        world.provider.add(machine(MachineState.STOPPED, id=f"gr-one-{number}"))
    world.provider.unread = (Unread("there", TransientError("no answer")),)
    world.provider.terminate_errors.append(AuthError("may not"))
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert [failure.finding.id for failure in report.failed] == ["gr-one-1"]
    assert [finding.id for finding in report.removed] == ["gr-one-2"]
    assert {part.scope for part in report.unread} == {"there"}
    assert not report.clean
    assert (report + report).failed == report.failed * 2


def test_a_holder_that_changed_meanwhile_is_not_ended(world: World) -> None:
    made = world.provider.add(machine(age_s=3601.0), age_s=3601.0)
    findings = plan(world.provider, world.provider.inventory(Scope()), OWNER)
    assert [finding.verdict for finding in findings] == [Verdict.REMOVE]
    inventory = world.provider.inventory

    def then_adopted(scope: object) -> object:
        seen = inventory(scope)  # type: ignore[arg-type]  # passed on
        made.told = replace(made.told, lease=lease(holder="you"))
        return seen

    world.provider.inventory = then_adopted  # type: ignore[method-assign,assignment]  # a race, played out
    report = clean(world.provider, owner=OWNER, clock=world.clock)
    assert len(report.failed) == 1
    assert [*world.provider.machines] == ["gr-one-1"]


def test_the_sweep_of_a_run_takes_only_this_owners_expired_machines(world: World) -> None:
    old = 3601.0
    world.provider.add(machine(), age_s=old)
    world.provider.add(machine(id="gr-two-1", lease=lease(id="gr-two", owner="another team")), age_s=old)
    world.provider.add(machine(MachineState.STOPPED, id="gr-three-1", lease=lease(id="gr-three")))
    world.provider.add(machine(MachineState.TERMINATED, id="gr-four-1", lease=lease(id="gr-four")), age_s=old)
    world.provider.add(untagged(None), age_s=1e9)
    report = sweep_expired(world.provider, owner=OWNER, clock=world.clock)
    assert [finding.lease_id for finding in report.removed] == ["gr-one"]
    assert "gr-one-1" not in world.provider.machines
    assert len(world.provider.machines) == 4
    assert world.clock.waits_s == []
