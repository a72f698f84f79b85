"""From offers to one machine that runs, over clouds without stock, with lost answers and late failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.cancel import CancelReason
from provisioner.errors import (
    AuthError,
    BootError,
    CancelledError,
    CapacityError,
    ConfigError,
    ExitCode,
    GpuRunnerError,
    LeaseHeldError,
    QuotaError,
    TransientError,
)
from provisioner.models import LaunchIntent, Machine, MachineRef, MachineState, Unread
from provisioner.pipeline.engine import Ending
from provisioner.pipeline.place import Place
from provisioner.pipeline.release import Release
from tests.fakes import LostAnswer
from tests.unit.lease import LEASE, OFFERS, World, lease, machine

NO_STOCK = CapacityError("no stock")
STOP = CancelReason("stop", ExitCode.INTERRUPTED)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.at(tmp_path)


class Attempt:
    """A place step with its release, as the pipeline puts them together."""

    def __init__(self, world: World, **request: object) -> None:
        self.world = world
        self.release = Release(world.env, LEASE)
        self.place = Place(world.env, world.request(**request), self.release)  # type: ignore[arg-type]  # by name

    def run(self) -> Place:
        self.place.run()
        return self.place

    def fails(self, kind: type[GpuRunnerError]) -> GpuRunnerError:
        with pytest.raises(kind) as caught:
            self.place.run()
        return caught.value

    def end(self) -> None:
        self.place.cleanup(Ending.RELEASE)
        self.release.cleanup(Ending.RELEASE)


def launches(world: World) -> list[str]:
    return [call for call in world.provider.calls if call.startswith("launch")]


def test_the_first_offer_does(world: World) -> None:
    place = Attempt(world).run()
    assert place.machine is not None
    assert (place.machine.state, place.machine.attempt) == (MachineState.RUNNING, 1)
    assert place.machine.endpoint is not None
    assert launches(world) == ["launch gr-one-1"]
    assert "placed_s" in world.env.timeline.marks


def test_what_will_be_done_is_written_down_before_it_is_done(world: World) -> None:
    launch: Callable[[LaunchIntent], MachineRef] = world.provider.launch

    def look_first(intent: LaunchIntent) -> MachineRef:
        (record,) = world.store.records()
        assert (record.lease, record.attempt, record.machine_id) == (LEASE, 1, None)
        assert world.store.key("gr-one", "me") == "PEM"
        return launch(intent)

    world.provider.launch = look_first  # type: ignore[method-assign]  # looks over the shoulder
    Attempt(world).run()
    (record,) = world.store.records()
    assert record.machine_id == "gr-one-1"


def test_no_stock_goes_on_to_the_next_offer(world: World) -> None:
    world.provider.launches.extend([NO_STOCK, NO_STOCK])
    place = Attempt(world).run()
    assert place.machine is not None
    assert (place.machine.offer, place.machine.attempt) == (OFFERS[2], 3)
    assert [refusal.offer for refusal in place.refusals] == [*OFFERS[:2]]
    assert len(world.notes.notes) == 2


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([NO_STOCK, NO_STOCK, NO_STOCK], CapacityError),
        ([QuotaError("quota of A", resolution="ask for more")] * 3, QuotaError),
        ([QuotaError("quota of A"), NO_STOCK, NO_STOCK], CapacityError),
    ],
)
def test_no_stock_anywhere_tells_what_each_said(
    world: World, errors: list[GpuRunnerError], kind: type[GpuRunnerError]
) -> None:
    world.provider.launches.extend(errors)
    error = Attempt(world).fails(CapacityError)
    assert type(error) is kind
    assert error.exit_code is ExitCode.NO_CAPACITY
    for offer, said in zip(OFFERS, errors, strict=True):
        assert f"{offer.region} type on-demand: {said.brief}" in error.details
    assert error.resolution


def test_without_offers_nothing_is_made(world: World) -> None:
    Attempt(world, offers=()).fails(ConfigError)
    assert world.provider.calls == []


def test_waiting_for_capacity_goes_round_again(world: World) -> None:
    world.provider.launches.extend([NO_STOCK] * 7)
    place = Attempt(world, wait_capacity_s=600.0).run()
    assert place.machine is not None
    assert place.machine.attempt == 8, "an attempt is never counted twice"
    began_s = world.clock.elapsed_s()
    world.provider.machines.clear()
    world.provider.launches.extend([NO_STOCK] * 10_000)
    Attempt(world, wait_capacity_s=600.0).fails(CapacityError)
    assert 560 <= world.clock.elapsed_s() - began_s <= 600


@pytest.mark.parametrize("error", [AuthError("no"), ConfigError("no such type"), LeaseHeldError("you")])
def test_what_no_other_offer_can_help_ends_it(world: World, error: GpuRunnerError) -> None:
    world.provider.launches.append(error)
    assert Attempt(world).fails(type(error)) is error
    assert launches(world) == ["launch gr-one-1"]


def test_a_passing_fault_is_the_same_attempt_again(world: World) -> None:
    world.provider.launches.extend([TransientError("busy")] * 3)
    place = Attempt(world).run()
    assert place.machine is not None
    assert place.machine.attempt == 1
    assert launches(world) == ["launch gr-one-1"] * 4


def test_a_lost_answer_whose_machine_appears_is_not_asked_for_again(world: World) -> None:
    world.provider.launches.append(LostAnswer(made=True, hidden_s=12.0))
    attempt = Attempt(world)
    place = attempt.run()
    assert place.machine is not None
    assert place.machine.ref.id == "gr-one-1"
    assert launches(world) == ["launch gr-one-1"]
    assert not attempt.release.in_doubt


def test_a_lost_answer_without_a_machine_goes_on_after_the_grace(world: World) -> None:
    world.provider.launches.append(LostAnswer(made=False))
    began_s = world.clock.elapsed_s()
    attempt = Attempt(world)
    place = attempt.run()
    assert place.machine is not None
    assert place.machine.ref.id == "gr-one-2"
    assert world.clock.elapsed_s() - began_s >= world.provider.traits.not_found_grace_s
    assert "answer was lost" in place.refusals[0].error.brief


def test_a_cancel_while_an_answer_is_in_doubt_leaves_the_doubt_to_the_release(world: World) -> None:
    world.provider.launches.append(LostAnswer(made=True, hidden_s=20.0))
    attempt = Attempt(world)
    launch: Callable[[LaunchIntent], MachineRef] = world.provider.launch

    def and_then_stop(intent: LaunchIntent) -> MachineRef:
        world.cancel.request(STOP)
        return launch(intent)

    world.provider.launch = and_then_stop  # type: ignore[method-assign]  # a signal during the call
    attempt.fails(CancelledError)
    assert attempt.release.in_doubt
    attempt.end()
    assert world.provider.machines == {}
    assert attempt.release.result is not None
    assert attempt.release.result.confirmed


def test_a_machine_that_fails_late_is_ended_before_the_next_offer(world: World) -> None:
    world.provider.late_failures.append(CapacityError("stock ran out while it was made"))
    place = Attempt(world).run()
    assert place.machine is not None
    assert place.machine.ref.id == "gr-one-2"
    calls = world.provider.calls
    assert calls.index("terminate gr-one-1") < calls.index("launch gr-one-2")
    assert [*world.provider.machines] == ["gr-one-2"]


def test_a_machine_that_does_not_start_in_time_is_a_boot_error(world: World) -> None:
    launch = world.provider.launch

    def slow(intent: LaunchIntent) -> MachineRef:
        ref = launch(intent)
        world.provider.machines[ref.id].boots_s = 1e6
        return ref

    world.provider.launch = slow  # type: ignore[method-assign]  # a cloud that never gets there
    attempt = Attempt(world)
    error = attempt.fails(BootError)
    assert "120 s" in error.brief
    assert "pending" in error.details
    attempt.end()
    assert world.provider.machines == {}


@pytest.mark.parametrize("state", [MachineState.TERMINATED, MachineState.STOPPED])
def test_a_machine_that_ended_itself_is_a_boot_error_at_once(world: World, state: MachineState) -> None:
    launch = world.provider.launch

    def stillborn(intent: LaunchIntent) -> MachineRef:
        ref = launch(intent)
        world.provider.machines[ref.id].told = machine(state, reason="fuse")
        return ref

    world.provider.launch = stillborn  # type: ignore[method-assign]  # as above
    began_s = world.clock.elapsed_s()
    assert Attempt(world).fails(BootError).details == "fuse"
    assert world.clock.elapsed_s() == began_s


@pytest.mark.parametrize(
    "there",
    [
        machine(lease=lease(holder="you")),
        Machine(MachineRef("fake", "here", "gr-one-1", "gr-one"), MachineState.UNKNOWN, None),
    ],
    ids=["of another holder", "without readable tags"],
)
def test_a_lease_that_somebody_holds_is_refused_before_anything_is_made(world: World, there: Machine) -> None:
    world.provider.add(there)
    attempt = Attempt(world)
    error = attempt.fails(LeaseHeldError)
    assert "gpu-runner down gr-one" in error.resolution
    attempt.end()
    assert world.provider.calls == []
    assert [*world.provider.machines] == ["gr-one-1"]


def test_a_machine_that_has_ended_holds_no_lease(world: World) -> None:
    world.provider.add(machine(MachineState.TERMINATED, id="gr-one-9", lease=lease(holder="you")))
    assert Attempt(world).run().machine is not None


def test_what_cannot_be_read_may_hold_the_lease(world: World) -> None:
    world.provider.unread = (Unread("there", TransientError("does not answer")),)
    Attempt(world).fails(TransientError)
    assert launches(world) == []


def test_at_most_one_machine_survives_and_it_is_the_oldest(world: World) -> None:
    launch = world.provider.launch

    def twice(intent: LaunchIntent) -> MachineRef:
        world.provider.add(machine(MachineState.RUNNING, id="gr-one-7", attempt=7), age_s=5.0)
        world.provider.machines["gr-one-7"].boots_s = 0
        return launch(intent)

    world.provider.launch = twice  # type: ignore[method-assign]  # a create of an earlier life takes effect
    Attempt(world).fails(BootError)  # the oldest one has no address in this play
    assert [*world.provider.machines] == ["gr-one-7"]


def test_the_older_machine_of_another_holder_wins(world: World) -> None:
    launch = world.provider.launch

    def race(intent: LaunchIntent) -> MachineRef:
        world.provider.add(machine(id="gr-one-7", lease=lease(holder="you")), age_s=5.0)
        return launch(intent)

    world.provider.launch = race  # type: ignore[method-assign]  # two at once
    attempt = Attempt(world)
    attempt.fails(LeaseHeldError)
    attempt.end()
    assert [*world.provider.machines] == ["gr-one-7"]


STEPS = st.sampled_from(
    [None, NO_STOCK, QuotaError("quota"), TransientError("busy"), LostAnswer(made=True), LostAnswer(made=False)]
)
LATE = st.sampled_from([None, CapacityError("late"), BootError("late")])


@given(steps=st.lists(STEPS, max_size=12), late=st.lists(LATE, max_size=3), hidden_s=st.floats(0, 25))
def test_whatever_a_cloud_does_one_machine_at_most_runs_and_none_after_the_release(
    tmp_path_factory: pytest.TempPathFactory, steps: list[object], late: list[GpuRunnerError | None], hidden_s: float
) -> None:
    world = World.at(tmp_path_factory.mktemp("state"))
    for step in steps:
        world.provider.launches.append(
            LostAnswer(step.made, hidden_s) if isinstance(step, LostAnswer) else step  # type: ignore[arg-type]  # sampled
        )
    world.provider.late_failures.extend(late)
    attempt = Attempt(world)
    try:
        attempt.run()
    except GpuRunnerError as error:
        assert error.brief  # noqa: PT017  # any known error will do
    else:
        assert len(world.provider.machines) == 1
    attempt.end()
    assert world.provider.machines == {}
