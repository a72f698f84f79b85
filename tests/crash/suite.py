"""The sweep as tests: which commands are killed, and which layer is then alone.

A provider joins with a ``CrashWorld`` and a subclass:

    class TestMine(CrashSuite):
        world_type = MyWorld
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import pytest

from tests.crash.sweep import (
    LANES,
    Place,
    Row,
    Scenario,
    Stage,
    Sweep,
    chosen,
    cleanup_alone,
    count,
    dump,
    guard_alone,
    terminated,
)
from tests.crash.world import LATER_S, CrashWorld
from tests.tools import require

_PARTS = 4
_JOB = ("run", "--provider", "{provider}", "--lease-id", "{lease}", "--artifact", "out.txt", "--timeout")
_LONG = (*_JOB, "30s")
_SHORT = (*_JOB, "5s", "--fuse", "2s", "--heartbeat-timeout", "2s")
_SCRIPT = ("--", "sh", "-c", "echo hi > out.txt")


def _left_alone(stage: Stage) -> None:
    """A job that somebody started and left."""
    assert stage.control((*_LONG, "--detach", *_SCRIPT)) == 0, stage.said()


def _left_alone_for_short(stage: Stage) -> None:
    """The same, with limits of seconds."""
    assert stage.control((*_SHORT, "--detach", *_SCRIPT)) == 0, stage.said()


def _launched(stage: Stage) -> None:
    """A machine without a controller."""
    stage.world.launch(stage.lease_id)


def _expired(stage: Stage) -> None:
    """A machine whose deadline will be over, and what a crash could leave."""
    stage.world.launch(stage.lease_id)
    stage.world.leave_residue(stage.lease_id)


RUN = Scenario("run", (*_LONG, *_SCRIPT), settled="exec tarstream pack")
DETACH = Scenario("detach", (*_LONG, "--detach", *_SCRIPT))
ATTACH = Scenario("attach", ("attach", "{lease}"), _left_alone)
COLLECT = Scenario("collect", ("collect", "{lease}"), _left_alone)
SSH = Scenario("ssh", ("ssh", "{lease}", "--", "true"), _launched)
DOWN = Scenario("down", ("down", "{lease}"), _launched)
CLEANUP = Scenario("cleanup", ("cleanup", "--provider", "{provider}"), _expired, later_s=LATER_S)

SHORT_RUN = Scenario("run", (*_SHORT, "--on-controller-loss", "end", *_SCRIPT))
SHORT_DETACH = Scenario("detach", (*_SHORT, "--detach", *_SCRIPT), ends_within_s=35.0)
SHORT_ATTACH = Scenario("attach", ("attach", "{lease}"), _left_alone_for_short, ends_within_s=35.0)

Counted = Callable[[Scenario], Sequence[Place]]
Recorder = Callable[[str, object], None]


def _name(scenario: Scenario) -> str:
    return scenario.name


def _settle(row: Row, record_property: Recorder) -> None:
    """Put a row into the table, and hold it to the promise."""
    record_property("sweep", dump(row))
    assert not row.leaks, "\n".join(row.leaks)
    assert row.missed <= row.kills // 5, f"{row.missed} of {row.missed + row.kills} never came to their point"


class CrashSuite:
    """Every provider passes these; the names say what."""

    world_type: ClassVar[type[CrashWorld]]

    @pytest.fixture(scope="class")
    @classmethod
    def sweep(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
        folder = tmp_path_factory.mktemp("crash")
        with Sweep([cls.world_type(folder / str(lane)) for lane in range(LANES)]) as made:
            yield made

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, tmp_path_factory: pytest.TempPathFactory) -> Counted:
        """The places of a scenario; each is counted once."""
        known: dict[str, Sequence[Place]] = {}

        def counted(scenario: Scenario) -> Sequence[Place]:
            if scenario.name not in known:
                world = cls.world_type(tmp_path_factory.mktemp("count") / "world")
                try:
                    known[scenario.name] = count(world, scenario)
                finally:
                    world.close()
            return known[scenario.name]

        return counted

    def test_guard_ends_the_machine_of_a_killed_run(
        self, sweep: Sweep, places: Counted, record_property: Recorder
    ) -> None:
        _settle(guard_alone(sweep, SHORT_RUN, chosen(places(RUN)), places(RUN)), record_property)

    @pytest.mark.parametrize(
        ("short", "plain"), [(SHORT_DETACH, DETACH), (SHORT_ATTACH, ATTACH)], ids=["detach", "attach"]
    )
    def test_guard_ends_a_machine_that_was_left_alone(
        self, short: Scenario, plain: Scenario, sweep: Sweep, places: Counted, record_property: Recorder
    ) -> None:
        every = places(plain)
        _settle(guard_alone(sweep, short, chosen(every, places(RUN)), every), record_property)

    @pytest.mark.parametrize("part", range(_PARTS))
    def test_killed_run_with_a_killed_guard_is_cleaned_up(
        self, part: int, sweep: Sweep, places: Counted, record_property: Recorder
    ) -> None:
        _settle(sweep.run(RUN, chosen(places(RUN))[part::_PARTS], cleanup_alone), record_property)

    @pytest.mark.parametrize("part", range(_PARTS))
    def test_terminated_run_releases_its_machine(
        self, part: int, sweep: Sweep, places: Counted, record_property: Recorder
    ) -> None:
        _settle(sweep.run(RUN, chosen(places(RUN))[part::_PARTS], terminated), record_property)

    @pytest.mark.parametrize("scenario", [DETACH, ATTACH, COLLECT], ids=_name)
    def test_killed_command_on_a_job_with_a_killed_guard_is_cleaned_up(
        self, scenario: Scenario, sweep: Sweep, places: Counted, record_property: Recorder
    ) -> None:
        _settle(sweep.run(scenario, chosen(places(scenario), places(RUN)), cleanup_alone), record_property)

    def test_killed_ssh_leaves_no_key(self, sweep: Sweep, places: Counted, record_property: Recorder) -> None:
        require("ssh")
        _settle(sweep.run(SSH, chosen(places(SSH)), cleanup_alone), record_property)

    @pytest.mark.parametrize("scenario", [DOWN, CLEANUP], ids=_name)
    def test_killed_removal_is_made_up_for_by_the_next(
        self, scenario: Scenario, sweep: Sweep, places: Counted, record_property: Recorder
    ) -> None:
        _settle(sweep.run(scenario, chosen(places(scenario)), cleanup_alone), record_property)
