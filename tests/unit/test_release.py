"""The end of a lease against clouds that are slow, deaf, blind, or hold somebody else's machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.cancel import CancelReason
from provisioner.errors import AuthError, ExitCode, GpuRunnerError, NotFoundError, TransientError
from provisioner.models import MachineState, Residue, Unread
from provisioner.pipeline.engine import Ending
from provisioner.pipeline.release import Release, Releaser, ReleaseResult
from tests.unit.lease import LEASE, World, lease, machine

BLIND = Unread("region there", TransientError("does not answer"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.at(tmp_path)


def release(world: World, *, armed: bool = True, ending: Ending = Ending.RELEASE, in_doubt: bool = False) -> Release:
    step = Release(world.env, LEASE)
    if armed:
        step.arm()
    step.in_doubt = in_doubt
    step.cleanup(ending)
    return step


def result_of(step: Release) -> ReleaseResult:
    assert step.result is not None
    return step.result


def test_it_tags_then_ends_then_proves(world: World) -> None:
    world.provider.add(machine())
    world.provider.residue.append(Residue("fake", "here", "volume", "v1", "gr-one"))
    result = result_of(release(world))
    assert world.provider.calls[:2] == ["mark gr-one-1", "terminate gr-one-1"]
    assert world.provider.calls[2:] == ["remove v1"]
    assert (result.confirmed, result.billing_stopped, result.left) == (True, True, ())
    assert "released_s" in world.env.timeline.marks


@pytest.mark.parametrize(("armed", "ending"), [(False, Ending.RELEASE), (True, Ending.LEAVE)])
def test_nothing_is_touched_that_was_not_made_or_is_to_stay(world: World, ending: Ending, *, armed: bool) -> None:
    world.provider.add(machine())
    assert release(world, armed=armed, ending=ending).result is None
    assert world.provider.calls == []


def test_a_cancel_does_not_hold_it_up(world: World) -> None:
    world.cancel.request(CancelReason("stop", ExitCode.TERMINATED), hard=True)
    world.provider.add(machine())
    assert result_of(release(world)).confirmed


def test_record_and_key_go_only_with_the_proof(world: World) -> None:
    world.store.save_key("gr-one", "me", "PEM")
    world.provider.add(machine()).immortal = True
    assert not result_of(release(world)).confirmed
    assert world.store.key("gr-one", "me") == "PEM"
    world.provider.machines.clear()
    assert result_of(release(world)).confirmed
    assert world.store.key("gr-one", "me") is None


def test_a_machine_that_does_not_end_is_told_by_name_after_the_limit(world: World) -> None:
    world.provider.add(machine()).immortal = True
    result = result_of(release(world))
    assert (result.confirmed, result.billing_stopped) == (False, False)
    assert "gr-one-1" in result.left[0]
    assert 100 <= result.seconds < 120
    assert world.provider.calls.count("terminate gr-one-1") > 5


def test_billing_may_have_stopped_before_the_proof(world: World) -> None:
    world.provider.add(machine(MachineState.STOPPING, billing_stopped=True)).immortal = True
    result = result_of(release(world))
    assert (result.confirmed, result.billing_stopped) == (False, True)


def test_a_machine_of_another_holder_is_left_alone_with_its_residue(world: World) -> None:
    world.provider.add(machine(lease=lease(holder="you")))
    world.provider.residue.append(Residue("fake", "here", "volume", "v1", "gr-one"))
    result = result_of(release(world))
    assert result.confirmed
    assert world.provider.calls == []
    assert len(world.provider.residue) == 1


def test_a_person_may_end_any_holders_machine(world: World) -> None:
    world.provider.add(machine(lease=lease(holder="you")))
    releaser = Releaser(world.provider, world.clock, world.notes, lease_id="gr-one", holder=None)
    assert releaser.release().confirmed
    assert world.provider.machines == {}


def test_what_ended_already_is_a_success(world: World) -> None:
    world.provider.add(machine(MachineState.TERMINATED)).immortal = True
    result = result_of(release(world))
    assert (result.confirmed, result.seconds) == (True, 0.0)


def test_passing_faults_are_tried_again(world: World) -> None:
    world.provider.add(machine())
    world.provider.terminate_errors.extend([TransientError("busy"), TransientError("busy")])
    world.provider.inventory_errors.extend([TransientError("busy"), TransientError("busy")])
    assert result_of(release(world)).confirmed


@pytest.mark.parametrize("error", [AuthError("token has expired"), TransientError("throttled")])
def test_a_listing_that_fails_for_good_is_unknown_and_never_gone(world: World, error: GpuRunnerError) -> None:
    world.provider.inventory_errors.extend([error] * 1000)
    result = result_of(release(world))
    assert (result.confirmed, result.billing_stopped) == (False, False)
    assert error.brief in result.left[0]


def test_a_part_that_cannot_be_read_leaves_it_unconfirmed_and_ends_the_rest(world: World) -> None:
    world.provider.add(machine())
    world.provider.unread = (BLIND,)
    result = result_of(release(world))
    assert (result.confirmed, result.billing_stopped) == (False, False)
    assert "region there could not be read" in result.left[0]
    assert world.provider.machines == {}


@pytest.mark.parametrize("blind", [True, False])
def test_what_was_made_is_ended_also_when_no_listing_shows_it(world: World, *, blind: bool) -> None:
    made = world.provider.add(machine())
    made.hidden_s = 1e9
    if blind:
        world.provider.inventory_errors.extend([AuthError("may not list")] * 1000)
    else:
        world.provider.unread = (BLIND,)
    step = Release(world.env, LEASE)
    step.arm()
    step.made(made.told.ref)
    step.cleanup(Ending.RELEASE)
    assert world.provider.machines == {}
    assert not result_of(step).confirmed


def test_a_create_in_doubt_is_watched_for_what_appears_late(world: World) -> None:
    world.provider.add(machine(), age_s=0.0).hidden_s = 20.0
    result = result_of(release(world, in_doubt=True))
    assert result.confirmed
    assert 20 <= result.seconds <= 100
    assert world.provider.machines == {}


def test_an_empty_listing_is_believed_at_once_only_without_doubt(world: World) -> None:
    assert result_of(release(world)).seconds == 0.0
    assert result_of(release(world, in_doubt=True)).seconds >= world.provider.traits.not_found_grace_s


def test_a_machine_that_goes_while_it_is_being_tagged(world: World) -> None:
    world.provider.add(machine())
    mark = world.provider.mark_releasing

    def gone_by_then(*_: object) -> None:
        world.provider.machines.clear()
        raise NotFoundError("gone")

    world.provider.mark_releasing = gone_by_then  # type: ignore[method-assign,assignment]  # a race, played out
    assert result_of(release(world)).confirmed
    world.provider.mark_releasing = mark  # type: ignore[method-assign]


def test_a_holder_that_changed_between_look_and_blow_is_warned_of(world: World) -> None:
    made = world.provider.add(machine())
    inventory: Callable[..., object] = world.provider.inventory

    def then_taken_over(scope: object) -> object:
        seen = inventory(scope)
        made.told = replace(made.told, lease=lease(holder="you"))
        return seen

    world.provider.inventory = then_taken_over  # type: ignore[method-assign,assignment]  # a race, played out
    result = result_of(release(world))
    assert result.confirmed, "nothing of ours is left"
    assert "gr-one-1" in world.provider.machines
    assert any("another holder" in warning for warning in world.notes.warnings)
