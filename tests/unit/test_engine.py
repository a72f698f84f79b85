"""Steps and clean-ups: whatever raises where, each that was entered is cleaned up once, in reverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.cancel import Cancel, CancelReason
from provisioner.errors import BootError, CancelledError, ExitCode
from provisioner.pipeline.engine import Ending, Steps

STOP = CancelReason("stop", ExitCode.INTERRUPTED)


class Recorder:
    """A step that writes down what happens to it, and raises if told to."""

    def __init__(self, name: str, log: list[str], *, run: BaseException | None, cleanup: BaseException | None) -> None:
        self.name = name
        self._log = log
        self._run = run
        self._cleanup = cleanup

    def run(self) -> None:
        self._log.append(f"+{self.name}")
        if self._run is not None:
            raise self._run

    def cleanup(self, ending: Ending) -> None:
        self._log.append(f"-{self.name} {ending.value}")
        if self._cleanup is not None:
            raise self._cleanup


ERRORS = st.sampled_from([None, None, BootError("no"), ValueError("bug"), KeyboardInterrupt(), SystemExit(3)])


@given(plan=st.lists(st.tuples(ERRORS, ERRORS), max_size=6), ending=st.sampled_from(Ending))
def test_each_step_that_was_entered_is_cleaned_up_once_in_reverse(
    plan: list[tuple[BaseException | None, BaseException | None]], ending: Ending
) -> None:
    log: list[str] = []
    steps = Steps([Recorder(str(n), log, run=run, cleanup=after) for n, (run, after) in enumerate(plan)], Cancel())
    failure = steps.run()
    problems = steps.cleanup(ending)
    first_bad = next((n for n, (run, _) in enumerate(plan) if run is not None), None)
    entered = range(len(plan) if first_bad is None else first_bad + 1)
    assert log == [f"+{n}" for n in entered] + [f"-{n} {ending.value}" for n in reversed(entered)]
    assert failure is (None if first_bad is None else plan[first_bad][0])
    assert problems == tuple(plan[n][1] for n in reversed(entered) if plan[n][1] is not None)


def test_nothing_is_begun_once_an_end_was_asked_for() -> None:
    log: list[str] = []
    cancel = Cancel()
    cancel.request(STOP)
    steps = Steps([Recorder("a", log, run=None, cleanup=None)], cancel)
    assert isinstance(steps.run(), CancelledError)
    assert steps.cleanup(Ending.RELEASE) == ()
    assert log == []


def test_an_end_between_two_steps_keeps_the_second_from_beginning() -> None:
    log: list[str] = []
    cancel = Cancel()
    second = Recorder("b", log, run=None, cleanup=None)

    class First(Recorder):
        def run(self) -> None:
            super().run()
            cancel.request(STOP)

    steps = Steps([First("a", log, run=None, cleanup=None), second], cancel)
    failure = steps.run()
    steps.cleanup(Ending.RELEASE)
    assert isinstance(failure, CancelledError)
    assert failure.exit_code == pytest.approx(ExitCode.INTERRUPTED)
    assert log == ["+a", "-a release"]
