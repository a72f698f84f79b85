"""The sweep: a clean run counts the points, then controllers are killed at them, and each layer is checked alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue

from tests.crash import launcher
from tests.crash.launcher import Plan
from tests.crash.points import Moment
from tests.crash.world import LATER_S, CrashWorld

FULL = os.environ.get("GPU_RUNNER_CRASH_SWEEP") == "full"
"""Every point, both moments; else what stands for it, see ``chosen``."""

_PATIENCE_S = 60.0
_RELEASED_WITHIN_S = 10.0
_NOTE_S = 40.0
_HERE = frozenset({"mkdir", "write", "replace", "unlink", "rmdir"})
_EVERY = 6
_ASKED = 2
LANES = 3
"""Worlds at once; they wait more than they work."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "tests.crash.launcher", "tests.crash.preload"])
_STARTING = threading.Lock()


@dataclass(frozen=True)
class Place:
    """A point and a moment of a clean run.

    Attributes:
        order: Its place in the clean run.
        point: The point's name.
        moment: Before or after.
    """

    order: int
    point: str
    moment: Moment

    @property
    def kind(self) -> str:
        """The kind of effect."""
        return self.point.partition(": ")[2].partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.moment} {self.point}"


@dataclass(frozen=True)
class Scenario:
    """One command, and what must be there before it.

    Attributes:
        name: For the table.
        arguments: Of the command; ``{lease}`` and ``{provider}`` stand for those.
        prepare: Makes what it needs.
        later_s: How far its clock stands ahead.
        settled: The effect from which on its exit code stands, as part of a point's name.
        ends_within_s: The guard ends its machine so soon after the controller's death.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Stage], object] = field(default=lambda _: None)
    later_s: float = 0.0
    settled: str = ""
    ends_within_s: float = 15.0


@dataclass
class Row:
    """One line of the table.

    Attributes:
        command: The scenario.
        check: Which layer was alone.
        points: How many points.
        kills: How many controllers were struck.
        missed: How many ended without coming to their point.
        leaks: What was wrong.
        seconds: How long it took.
        ended_s: The longest that a guard took.
    """

    command: str
    check: str
    points: int = 0
    kills: int = 0
    missed: int = 0
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    ended_s: float = 0.0

    def __add__(self, other: Row) -> Row:
        return Row(
            self.command,
            self.check,
            self.points + other.points,
            self.kills + other.kills,
            self.missed + other.missed,
            self.leaks + other.leaks,
            self.seconds + other.seconds,
            max(self.ended_s, other.ended_s),
        )


class Stage:
    """One lease in a world, with a state folder of its own, and the controllers that act on it.

    Args:
        world: Where.
    """

    def __init__(self, world: CrashWorld) -> None:
        self.world = world
        self.lease_id = world.new_lease()
        self.home = world.folder / self.lease_id
        self.state = self.home / "state"
        self.trace = self.home / "trace"
        self.home.mkdir()

    def control(self, arguments: Sequence[str], plan: Plan | None = None, *, state: Path | None = None) -> int:
        """Run a controller to its end.

        Returns:
            Its exit code; negative for a signal.
        """
        own = {"HOME": str(self.home), "GPU_RUNNER_STATE_DIR": str(state or self.state)}
        environment = {**self.world.environment(), **own}
        words = [word.format(lease=self.lease_id, provider=self.world.name) for word in arguments]
        output = str(self.home / f"output-{secrets.token_hex(4)}")
        arguments_of_child = (plan or Plan(), words, environment, str(self.world.cwd), output)
        process = _CONTEXT.Process(target=launcher.in_child, args=arguments_of_child, daemon=True)
        with _STARTING:
            process.start()
        if not wait([process.sentinel], _PATIENCE_S):
            process.kill()
            raise AssertionError(f"{words} did not end within {_PATIENCE_S:.0f} s:\n{self.said()}")
        with _STARTING:  # starting reaps too, and only one of them would get the exit code
            code = process.exitcode
        assert code is not None
        return code

    def clean_up(self, state: Path) -> list[str]:
        """Run ``cleanup`` with a clock that stands past every deadline; what is wrong afterwards."""
        code = self.control(["cleanup", "--provider", self.world.name], Plan(later_s=LATER_S), state=state)
        wrong = [f"cleanup exits {code}: {self.said()}"] if code else []
        return wrong + self.world.left(self.lease_id) + self.world.harm()

    def age(self) -> None:
        """Make the files of the state folder as old as the clock of a cleanup says."""
        for path in self.state.rglob("*"):
            then_s = path.stat().st_mtime - LATER_S
            os.utime(path, (then_s, then_s))

    def remembered(self) -> list[str]:
        """What the controller's state folder holds of the lease, or of half a write."""
        found = [path for path in self.state.rglob("*") if not path.is_dir() and path.name != "last-cleanup"]
        return [f"state: {path.relative_to(self.state)}" for path in found]

    def said(self) -> str:
        """What its controllers said."""
        return "\n".join(path.read_text(errors="replace") for path in self.home.glob("output-*"))

    def close(self) -> None:
        """Remove its files, and end what is left of it."""
        if self.world.left(self.lease_id):
            self.world.end(self.lease_id)
        shutil.rmtree(self.home, ignore_errors=True)


def count(world: CrashWorld, scenario: Scenario) -> list[Place]:
    """The places of a clean run, in its order."""
    stage = Stage(world)
    try:
        scenario.prepare(stage)
        code = stage.control(scenario.arguments, Plan(stage.lease_id, trace=stage.trace, later_s=scenario.later_s))
        assert code == 0, stage.said()
        lines = stage.trace.read_text().splitlines()
    finally:
        stage.close()
    found = [line.partition(" ") for line in lines]
    return [Place(order, point, Moment(moment)) for order, (moment, _, point) in enumerate(found)]


def chosen(places: Sequence[Place], known: Iterable[Place] = ()) -> list[Place]:
    """Those places of a clean run that stand for all; the full sweep leaves out nothing.

    Nothing leaves a thread between one effect and its next. So *after* an effect on a file of ours is *before* what
    follows, *before* a request is *before* its channel, and *before* its input is *after* it: one kill stands for both.
    Of a tree that is removed file by file, of the writes into control groups, and of a question that is asked again
    and again, a few are taken. A point of the same name in another command counts once.

    Args:
        places: All.
        known: What was swept with another command.
    """
    if FULL:
        return list(places)
    names = {place.point for place in known}
    found = [place for place in places if place.point not in names and not _is_doubled(place)]
    alike = [place for place in found if _is_one_of_many(place)]
    left_out = {place for number, place in enumerate(alike) if number % _EVERY and place is not alike[-1]}
    return [place for place in found if place not in left_out]


def _is_one_of_many(place: Place) -> bool:
    return ": write gpu-runner-" in place.point or (place.kind in {"unlink", "rmdir"} and "/.gone-" in place.point)


def _is_doubled(place: Place) -> bool:
    if place.kind in _HERE:
        return place.moment is Moment.AFTER
    if place.kind in {"exec", "send"} and place.moment is Moment.BEFORE:
        return True
    return place.kind in {"channel", "exec", "send"} and int(place.point.rpartition("#")[2]) > _ASKED


def strike(stage: Stage, scenario: Scenario, place: Place, number: signal.Signals = signal.SIGKILL) -> int:
    """Run a scenario's command and send it a signal at one place.

    Returns:
        Its exit code.
    """
    scenario.prepare(stage)
    plan = Plan(
        stage.lease_id, place.point, place.moment, number, stage.trace, scenario.later_s, settled=scenario.settled
    )
    return stage.control(scenario.arguments, plan)


Check = Callable[[Stage, Scenario, Place], tuple[bool, list[str]]]
"""Strikes at one place; tells whether it was reached, and what is wrong."""


def cleanup_alone(stage: Stage, scenario: Scenario, place: Place) -> tuple[bool, list[str]]:
    """Controller and guard are dead: ``cleanup`` from an empty disk leaves nothing; so does a second, from the old."""
    code = strike(stage, scenario, place)
    stage.world.kill_guards(stage.lease_id)
    wrong = stage.clean_up(stage.home / "empty")
    stage.age()
    wrong += stage.clean_up(stage.state)
    return code == -signal.SIGKILL, wrong + stage.remembered()


def terminated(stage: Stage, scenario: Scenario, place: Place) -> tuple[bool, list[str]]:
    """SIGTERM: the release is proven within seconds, and the exit code says what happened."""
    code = strike(stage, scenario, place, signal.SIGTERM)
    sprung = stage.trace.read_text() if stage.trace.exists() else ""
    if not sprung:
        return False, []
    moment, settled = sprung.split()
    seconds = time.monotonic() - float(moment)
    wrong = [f"took {seconds:.1f} s"] if seconds > _RELEASED_WITHIN_S else []
    early = " cwd/" in place.point  # nothing has been made yet, so a signal may end it without ado
    if code != 128 + signal.SIGTERM and (code, settled) != (0, "settled") and not (code == -signal.SIGTERM and early):
        wrong.append(f"exits {code}: {stage.said()}")
    return True, wrong + stage.world.left(stage.lease_id) + stage.remembered() + stage.world.harm()


class Sweep:
    """Strikes controllers in several worlds at once, one after another in each.

    Args:
        worlds: Closed at the end.
    """

    def __init__(self, worlds: Sequence[CrashWorld]) -> None:
        self.worlds = worlds
        self._free: SimpleQueue[CrashWorld] = SimpleQueue()
        self._stack = ExitStack()
        for world in worlds:
            self._stack.callback(world.close)
            world.start_bystander()
            self._free.put(world)

    def __enter__(self) -> Sweep:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, scenario: Scenario, places: Sequence[Place], check: Check) -> Row:
        """Check one scenario at many places."""
        row = Row(scenario.name, check.__name__, points=len({place.point for place in places}))
        started_s = time.monotonic()
        with ThreadPoolExecutor(len(self.worlds)) as pool:
            results = list(pool.map(lambda place: self._one(scenario, place, check), places))
        for place, (reached, wrong) in zip(places, results, strict=True):
            row.kills += reached
            row.missed += not reached
            row.leaks += [f"{place}: {text}" for text in wrong]
        row.seconds = time.monotonic() - started_s
        return row

    def _one(self, scenario: Scenario, place: Place, check: Check) -> tuple[bool, list[str]]:
        world = self._free.get()
        stage = Stage(world)
        try:
            return check(stage, scenario, place)
        finally:
            stage.close()
            self._free.put(world)


@dataclass
class Victim:
    """A controller that was killed, with a guard that is left to itself."""

    stage: Stage
    place: Place
    guarded: bool
    reached: bool
    died_s: float
    ended_s: float | None = None


def guard_alone(sweep: Sweep, scenario: Scenario, places: Sequence[Place], every: Sequence[Place]) -> Row:
    """The controller is dead, and nobody does anything: the machine ends itself by its limits, and then vanishes.

    A machine whose guard had not begun, or was ended by the release, is files alone, which cost nothing: those are
    the cleanup's, here as ever, and a few of those places are enough.

    Args:
        sweep: Where.
        scenario: The command, with limits of seconds.
        places: Where to kill.
        every: All places of the command, to tell where its machine has a guard.
    """
    started_s = time.monotonic()
    begin = _order_of(every, sweep.worlds[0].guarded_from, Moment.AFTER, default=0)
    end = _order_of(every, sweep.worlds[0].guarded_until, Moment.BEFORE, default=1 << 30)
    if not FULL:
        places = [p for number, p in enumerate(places) if begin <= p.order <= end or number % _EVERY == 0]
    row = Row(scenario.name, "guard_alone", points=len({place.point for place in places}))

    def kill(number: int) -> Victim:
        place = places[number]
        stage = Stage(sweep.worlds[number % len(sweep.worlds)])
        code = strike(stage, scenario, place)
        guarded = begin <= place.order <= end
        return Victim(stage, place, guarded, code == -signal.SIGKILL, time.monotonic())

    limit_s = scenario.ends_within_s
    with ThreadPoolExecutor(len(sweep.worlds)) as pool:
        kills = [pool.submit(kill, number) for number in range(len(places))]
        while not all(done.done() for done in kills):
            _look_at([done.result() for done in kills if done.done()])
    victims = [done.result() for done in kills]
    try:
        _wait_for_ends(victims, limit_s + (_NOTE_S if FULL else 0.0))
        row.leaks += _judge(victims, limit_s)
        row.leaks += [f"{v.place}: {text}" for v in victims for text in v.stage.clean_up(v.stage.state)]
    finally:
        for victim in victims:
            victim.stage.close()
    row.kills = sum(victim.reached for victim in victims)
    row.missed = len(victims) - row.kills
    row.ended_s = max(victim.ended_s or 0.0 for victim in victims)
    row.seconds = time.monotonic() - started_s
    return row


def _wait_for_ends(victims: Sequence[Victim], within_s: float) -> None:
    """Wait until every machine has ended and, in the full sweep, its note has vanished; or until their time is over."""
    last_s = time.monotonic() + within_s
    while time.monotonic() < last_s:
        _look_at(victims)
        if all(v.ended_s is not None and not (FULL and _remains(v, but_note=False)) for v in victims):
            return


def _look_at(victims: Sequence[Victim]) -> None:
    """Note whose machine has ended by now."""
    for victim in victims:
        if victim.ended_s is None and not _remains(victim, but_note=True):
            victim.ended_s = time.monotonic() - victim.died_s
    time.sleep(0.2)


def _remains(victim: Victim, *, but_note: bool) -> list[str]:
    world, lease_id = victim.stage.world, victim.stage.lease_id
    return world.left(lease_id, but_note=but_note) if victim.guarded else world.working(lease_id)


def _judge(victims: Sequence[Victim], within_s: float) -> list[str]:
    """What guards did not do."""
    wrong = []
    for victim in victims:
        if victim.ended_s is None:
            wrong.append(f"{victim.place}: did not end: {_remains(victim, but_note=True)}")
        elif victim.ended_s > within_s:
            wrong.append(f"{victim.place}: ended only after {victim.ended_s:.1f} s")
        elif FULL and (left := _remains(victim, but_note=False)):
            wrong.append(f"{victim.place}: did not vanish: {left}")
    return wrong


def _order_of(places: Sequence[Place], text: str, moment: Moment, *, default: int) -> int:
    return next((place.order for place in places if text in place.point and place.moment is moment), default)


def dump(row: Row) -> str:
    """A row for the terminal summary, which another process prints."""
    return json.dumps(row.__dict__)
