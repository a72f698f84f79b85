"""One taxonomy of errors, by what the caller does next.

Every error has three parts: a brief (what happened), details (why), and a resolution (the next command to type).
The class decides the exit code and the ``outcome`` word of ``--json``; ``cli`` catches them once, in one place.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """What the process answers to its shell; the job's own code is passed through unchanged."""

    OK = 0
    USAGE = 64
    NO_CAPACITY = 69
    INTERNAL = 70
    BOOT_FAILED = 72
    ARTIFACTS_LOST = 74
    TRANSIENT = 75
    MACHINE_LOST = 76
    AUTH = 77
    BUDGET = 78
    RELEASE_UNCONFIRMED = 79
    JOB_TIMED_OUT = 124
    INTERRUPTED = 130
    TERMINATED = 143


class Outcome(str, enum.Enum):
    """What happened, told apart even where exit codes meet."""

    OK = "ok"
    JOB_FAILED = "job-failed"
    JOB_TIMED_OUT = "job-timed-out"
    ARTIFACTS_MISSING = "artifacts-missing"
    NO_CAPACITY = "no-capacity"
    BOOT_FAILED = "boot-failed"
    GPU_MISSING = "gpu-missing"
    MACHINE_LOST = "machine-lost"
    PREEMPTED = "preempted"
    BUDGET_REACHED = "budget-reached"
    AUTH = "auth"
    CONFIG = "config"
    CANCELLED = "cancelled"
    RELEASE_UNCONFIRMED = "release-unconfirmed"
    INTERNAL = "internal"

    __str__ = str.__str__


class GpuRunnerError(Exception):
    """The base of everything that gpu-runner raises on purpose.

    Args:
        brief: One line: what happened.
        details: Why, as far as known. May hold several lines.
        resolution: What to do next; best a command to type.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    outcome: ClassVar[Outcome] = Outcome.INTERNAL

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution


class ConfigError(GpuRunnerError):
    """The request is wrong, and trying again cannot help: stop and tell the user."""

    exit_code = ExitCode.USAGE
    outcome = Outcome.CONFIG


class LeaseHeldError(ConfigError):
    """Another holder has this lease and is alive: leave its machine alone."""


class RefusedError(ConfigError):
    """A machine carries another lease or holder than expected: it is not ours to touch."""


class CapacityError(GpuRunnerError):
    """No stock in this scope: try the next offer, and remember it for a time."""

    exit_code = ExitCode.NO_CAPACITY
    outcome = Outcome.NO_CAPACITY


class QuotaError(CapacityError):
    """A quota is used up: another family or region may do; tell the user which quota."""


class AuthError(GpuRunnerError):
    """Credentials or permissions: nothing else on this cloud or forge will work."""

    exit_code = ExitCode.AUTH
    outcome = Outcome.AUTH


class TransientError(GpuRunnerError):
    """A passing fault: the same idempotent call may be tried again."""

    exit_code = ExitCode.TRANSIENT
    outcome = Outcome.INTERNAL


class InDoubtError(TransientError):
    """The answer of a create call was lost: look the machine up before anything else is tried."""


class NotFoundError(GpuRunnerError):
    """The thing is not there. For a delete: done, if it had been seen before; for who named it: a wrong name."""

    exit_code = ExitCode.USAGE
    outcome = Outcome.CONFIG


class BootError(GpuRunnerError):
    """The machine did not become usable in time."""

    exit_code = ExitCode.BOOT_FAILED
    outcome = Outcome.BOOT_FAILED


class GpuMissingError(BootError):
    """The GPU that was asked for is not there, or its driver does not answer."""

    outcome = Outcome.GPU_MISSING


class MachineLostError(GpuRunnerError):
    """The machine ended or stopped answering while it was needed."""

    exit_code = ExitCode.MACHINE_LOST
    outcome = Outcome.MACHINE_LOST


class PreemptedError(MachineLostError):
    """The cloud took the spot machine back."""

    outcome = Outcome.PREEMPTED


class ArtifactsLostError(GpuRunnerError):
    """The job succeeded and what it made could not be brought back."""

    exit_code = ExitCode.ARTIFACTS_LOST
    outcome = Outcome.ARTIFACTS_MISSING


class BudgetError(GpuRunnerError):
    """The cost limit is reached."""

    exit_code = ExitCode.BUDGET
    outcome = Outcome.BUDGET_REACHED


class ReleaseUnconfirmedError(GpuRunnerError):
    """A machine may still be alive: outranks everything else."""

    exit_code = ExitCode.RELEASE_UNCONFIRMED
    outcome = Outcome.RELEASE_UNCONFIRMED


class CancelledError(GpuRunnerError):
    """A person, the CI system or ``down`` asked for an early end.

    Args:
        brief: One line: who asked.
        exit_code: 130 for an interrupt, 143 for a termination or a ``down``.
    """

    outcome = Outcome.CANCELLED

    def __init__(self, brief: str, *, exit_code: ExitCode = ExitCode.INTERRUPTED) -> None:
        super().__init__(brief)
        self.exit_code = exit_code  # type: ignore[misc]  # one class, two signals
