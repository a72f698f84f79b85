"""What counts when several things happen: the gravest decides outcome and exit code."""

from __future__ import annotations

import itertools
import json

import pytest

from provisioner.errors import (
    ArtifactsLostError,
    AuthError,
    BootError,
    BudgetError,
    CancelledError,
    CapacityError,
    ConfigError,
    ExitCode,
    GpuMissingError,
    MachineLostError,
    Outcome,
    PreemptedError,
    TransientError,
)
from provisioner.models import Machine
from provisioner.pipeline.collect import ArtifactTotals
from provisioner.pipeline.release import ReleaseResult
from provisioner.pipeline.result import RunResult
from provisioner.remote.job import JobState, JobStatus
from tests.unit.lease import LEASE, OFFERS, machine

OK = JobStatus(JobState.ENDED, exit_code=0)
FAILED = JobStatus(JobState.ENDED, exit_code=3)
KILLED = JobStatus(JobState.ENDED, exit_code=137, signal=9)
TIMED_OUT = JobStatus(JobState.ENDED, exit_code=143, signal=15, timed_out=True)
LOST = JobStatus(JobState.LOST)
RUNNING = JobStatus(JobState.RUNNING)
GONE = ReleaseResult(confirmed=True, billing_stopped=True, seconds=1.0)
ALMOST = ReleaseResult(confirmed=False, billing_stopped=True, seconds=1.0, left=("volume v1 in here",))
UNKNOWN = ReleaseResult(confirmed=False, billing_stopped=False, seconds=9.0, left=("machine gr-one-1 is running",))
KEPT = ReleaseResult(confirmed=False, billing_stopped=False, seconds=0.0, kept_for_s=60.0)
CTRL_C = CancelledError("interrupted")
SIGTERM = CancelledError("terminated", exit_code=ExitCode.TERMINATED)
MISSING = ArtifactsLostError("nothing matched")


def result(
    status: JobStatus | None = OK,
    error: BaseException | None = None,
    release: ReleaseResult | None = GONE,
    *,
    problems: tuple[BaseException, ...] = (),
    there: Machine | None = None,
    timeline: dict[str, float] | None = None,
    detached: bool = False,
) -> RunResult:
    return RunResult(
        lease=LEASE,
        machine=there,
        timeline=timeline or {},
        status=status,
        totals=ArtifactTotals(),
        output="results",
        release=release,
        error=error,
        problems=problems,
        detached=detached,
    )


@pytest.mark.parametrize(
    ("status", "error", "outcome", "code"),
    [
        (OK, None, "ok", 0),
        (FAILED, None, "job-failed", 3),
        (KILLED, None, "job-failed", 137),
        (TIMED_OUT, None, "job-timed-out", 124),
        (LOST, None, "machine-lost", 76),
        (OK, MISSING, "artifacts-missing", 74),
        (FAILED, MISSING, "job-failed", 3),
        (TIMED_OUT, MISSING, "job-timed-out", 124),
        (None, CTRL_C, "cancelled", 130),
        (None, SIGTERM, "cancelled", 143),
        (FAILED, SIGTERM, "cancelled", 143),
        (TIMED_OUT, CTRL_C, "cancelled", 130),
        (None, CapacityError("no stock"), "no-capacity", 69),
        (None, BootError("no answer"), "boot-failed", 72),
        (None, GpuMissingError("no GPU"), "gpu-missing", 72),
        (None, MachineLostError("gone"), "machine-lost", 76),
        (None, PreemptedError("taken back"), "preempted", 76),
        (None, BudgetError("used up"), "budget-reached", 78),
        (None, AuthError("expired"), "auth", 77),
        (None, ConfigError("wrong"), "config", 64),
        (None, TransientError("busy"), "internal", 75),
        (None, ValueError("bug"), "internal", 70),
        (None, KeyboardInterrupt(), "internal", 70),
    ],
)
def test_outcome_and_exit_code(status: JobStatus | None, error: BaseException | None, outcome: str, code: int) -> None:
    assert result(status, error).verdict() == (Outcome(outcome), code)


ERRORS = [None, CTRL_C, SIGTERM, MISSING, CapacityError("no"), ValueError("bug")]


@pytest.mark.parametrize(("status", "error"), [*itertools.product([None, OK, FAILED, TIMED_OUT, LOST], ERRORS)])
def test_a_release_that_is_not_confirmed_outranks_all(status: JobStatus | None, error: BaseException | None) -> None:
    assert result(status, error, UNKNOWN).verdict() == (Outcome.RELEASE_UNCONFIRMED, 79)


def test_the_word_on_it_names_the_machine_and_the_command() -> None:
    told = result(there=machine(), release=UNKNOWN).unconfirmed
    assert told is not None
    assert "gr-one-1" in told.brief
    assert "machine gr-one-1 is running" in told.details
    assert "gpu-runner down gr-one" in told.resolution
    unseen = result(release=UNKNOWN).unconfirmed
    assert unseen is not None
    assert "a machine may still be alive" in unseen.brief


@pytest.mark.parametrize("release", [GONE, ALMOST, KEPT, None])
def test_billing_that_has_stopped_or_a_machine_that_is_kept_decides_nothing(release: ReleaseResult | None) -> None:
    assert result(FAILED, release=release).verdict() == (Outcome.JOB_FAILED, 3)


def test_a_job_left_running_is_a_success() -> None:
    assert result(RUNNING, release=KEPT, detached=True).verdict() == (Outcome.OK, 0)
    assert result(None, release=KEPT, detached=True).verdict() == (Outcome.OK, 0)


def test_a_clean_up_that_failed_counts_only_when_nothing_else_does() -> None:
    problem = (ValueError("bug in a clean-up"),)
    assert result(problems=problem).verdict() == (Outcome.INTERNAL, 70)
    assert result(FAILED, problems=problem).verdict() == (Outcome.JOB_FAILED, 3)
    assert result(None, CTRL_C, problems=problem).verdict() == (Outcome.CANCELLED, 130)


def test_cost_is_price_times_time_and_unknown_is_not_zero() -> None:
    used = {"placed_s": 100.0, "released_s": 1900.0}
    assert result(there=machine(offer=OFFERS[0]), timeline=used).cost_usd() == 1.0
    assert result(there=machine(offer=OFFERS[0]), timeline={"placed_s": 100.0}).cost_usd() is None
    assert result(there=machine(), timeline=used).cost_usd() is None
    assert result(there=None).cost_usd() == 0.0


@pytest.mark.parametrize("status", [None, OK, LOST])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("release", [None, GONE, UNKNOWN, KEPT])
def test_every_ending_makes_one_document(
    status: JobStatus | None, error: BaseException | None, release: ReleaseResult | None
) -> None:
    ending = result(status, error, release, there=machine(offer=OFFERS[0]))
    document = json.loads(json.dumps(ending.document()))
    assert document.keys() >= {
        "outcome",
        "lease_id",
        "machine",
        "timeline",
        "job",
        "artifacts",
        "cost_usd",
        "release",
        "exit_code",
        "error",
    }
    assert (document["outcome"], document["exit_code"]) == tuple(ending.verdict())
    assert (document["error"] is None) == (error is None and release is not UNKNOWN)
    assert document["machine"]["price_usd_hour"] == 2.0
