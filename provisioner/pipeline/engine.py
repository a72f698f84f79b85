"""Steps and their clean-up, in the order that never loses one."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from provisioner.cancel import Cancel


class Ending(enum.Enum):
    """What the clean-ups are to leave behind."""

    RELEASE = "release"
    LEAVE = "leave"


class Step(Protocol):
    """One step. Its products are typed attributes that later steps read."""

    name: str

    def run(self) -> None:
        """Do it; may raise at any point."""
        ...

    def cleanup(self, ending: Ending) -> None:
        """Undo it, however far ``run`` came; called once, after the clean-ups of all later steps."""
        ...


class Steps:
    """Runs steps in order and their clean-ups in reverse.

    A step's clean-up is registered before the step runs, so a crash in the middle of it is cleaned up as well, and a
    clean-up that fails never stops the others.

    Args:
        steps: The steps, in reading order.
        cancel: Looked at before each step.
    """

    def __init__(self, steps: Sequence[Step], cancel: Cancel) -> None:
        self._steps = steps
        self._cancel = cancel
        self._entered: list[Step] = []

    def run(self) -> BaseException | None:
        """Run the steps until one raises.

        Returns:
            What was raised, KeyboardInterrupt and the like included; None when all ran through.
        """
        try:
            for step in self._steps:
                self._cancel.check()
                self._entered.append(step)
                step.run()
        except BaseException as error:  # noqa: BLE001 - whatever it was, the clean-ups must run
            return error
        return None

    def cleanup(self, ending: Ending) -> tuple[BaseException, ...]:
        """Clean up what was entered, last first.

        Args:
            ending: What is to be left behind.

        Returns:
            What the clean-ups raised.
        """
        problems: list[BaseException] = []
        for step in reversed(self._entered):
            try:
                step.cleanup(ending)
            except BaseException as error:  # noqa: BLE001 - one failing clean-up does not stop the others
                problems.append(error)
        return tuple(problems)
