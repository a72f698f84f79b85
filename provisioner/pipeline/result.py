"""How a run ended: one outcome, one exit code, one JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from provisioner.errors import (
    ArtifactsLostError,
    CancelledError,
    ExitCode,
    GpuRunnerError,
    Outcome,
    ReleaseUnconfirmedError,
)
from provisioner.models import Lease, Machine
from provisioner.pipeline.collect import ArtifactTotals
from provisioner.pipeline.release import ReleaseResult
from provisioner.remote.job import JobState, JobStatus

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class RunResult:
    """Everything that is known at the end.

    Attributes:
        lease: The lease.
        machine: The machine; None when there never was one.
        timeline: Seconds at which each mark was reached.
        status: How the job ended; None when it did not start or its end is not known.
        totals: What came home.
        output: Where it came to.
        release: How the release went; None when nothing had to be released.
        error: What went wrong besides the job itself; the first cause.
        problems: What else went wrong in clean-ups.
        detached: Whether the job was left running on purpose.
    """

    lease: Lease
    machine: Machine | None
    timeline: dict[str, float]
    status: JobStatus | None
    totals: ArtifactTotals
    output: str
    release: ReleaseResult | None
    error: BaseException | None
    problems: tuple[BaseException, ...] = ()
    detached: bool = False

    @property
    def unconfirmed(self) -> ReleaseUnconfirmedError | None:
        """The error that outranks all others: compute may still be billed."""
        release = self.release
        if release is None or release.billing_stopped or release.kept_for_s is not None:
            return None
        machine = f"machine {self.machine.ref.id}" if self.machine is not None else "a machine"
        return ReleaseUnconfirmedError(
            f"the release of lease {self.lease.id} is not confirmed: {machine} may still be alive",
            details="\n".join(release.left),
            resolution=f"run `gpu-runner down {self.lease.id}`, and `gpu-runner cleanup` after that",
        )

    def verdict(self) -> tuple[Outcome, int]:
        """The outcome and the exit code, the gravest first."""
        if self.unconfirmed is not None:
            return Outcome.RELEASE_UNCONFIRMED, ExitCode.RELEASE_UNCONFIRMED
        if isinstance(self.error, CancelledError) or self.status is None or self.detached:
            return self._error_verdict()
        return self._job_verdict(self.status) or self._error_verdict()

    def _job_verdict(self, status: JobStatus) -> tuple[Outcome, int] | None:
        if status.state is JobState.LOST:
            return Outcome.MACHINE_LOST, ExitCode.MACHINE_LOST
        if status.timed_out:
            return Outcome.JOB_TIMED_OUT, ExitCode.JOB_TIMED_OUT
        if status.exit_code not in {0, None}:
            return Outcome.JOB_FAILED, status.exit_code or 0
        return None

    def _error_verdict(self) -> tuple[Outcome, int]:
        if isinstance(self.error, GpuRunnerError):
            return self.error.outcome, self.error.exit_code
        if self.error is not None or self.problems:
            return Outcome.INTERNAL, ExitCode.INTERNAL
        return Outcome.OK, ExitCode.OK

    def used_s(self) -> float | None:
        """Seconds from the placing to the release; None when one of the two was not reached."""
        begin_s, end_s = self.timeline.get("placed_s"), self.timeline.get("released_s")
        return None if begin_s is None or end_s is None else end_s - begin_s

    def cost_usd(self) -> float | None:
        """Price times the time that the machine was used; None when one of them is not known."""
        if self.machine is None:
            return 0.0
        price = self.machine.offer.price_usd_hour if self.machine.offer else None
        used_s = self.used_s()
        return None if price is None or used_s is None else price * used_s / _SECONDS_PER_HOUR

    def document(self) -> dict[str, Any]:
        """The document of ``run --json``."""
        outcome, exit_code = self.verdict()
        return {
            "outcome": str(outcome),
            "exit_code": int(exit_code),
            "lease_id": self.lease.id,
            "machine": _machine_document(self.machine),
            "timeline": _timeline_document(self.timeline),
            "job": _job_document(self.status),
            "artifacts": {
                "files": self.totals.files,
                "bytes": self.totals.bytes,
                "seconds": round(self.totals.seconds, 3),
                "directory": self.output,
                "complete": not isinstance(self.error, ArtifactsLostError),
            },
            "cost_usd": self.cost_usd(),
            "release": _release_document(self.release),
            "error": _error_document(self.unconfirmed or self.error),
            "detached": self.detached,
        }


_MARKS = ("placed_s", "ready_s", "uploaded_s", "job_started_s", "job_ended_s", "collected_s", "released_s")


def _timeline_document(timeline: dict[str, float]) -> dict[str, float | None]:
    return {mark: timeline.get(mark) for mark in _MARKS}


def _machine_document(machine: Machine | None) -> dict[str, Any] | None:
    if machine is None:
        return None
    offer = machine.offer
    return {
        "provider": machine.ref.provider,
        "region": machine.ref.region,
        "zone": offer.zone if offer else None,
        "id": machine.ref.id,
        "instance_type": offer.instance_type if offer else None,
        "market": str(offer.market) if offer else None,
        "price_usd_hour": offer.price_usd_hour if offer else None,
    }


def _job_document(status: JobStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    return {
        "exit_code": status.exit_code,
        "timed_out": status.timed_out,
        "duration_s": status.duration_s,
        "state": str(status.state),
        "failed_in": status.failed_in,
        "log_bytes": status.log_bytes,
        "log_dropped_bytes": status.log_dropped_bytes,
    }


def _release_document(release: ReleaseResult | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {
        "confirmed": release.confirmed,
        "billing_stopped": release.billing_stopped,
        "seconds": round(release.seconds, 3),
        "left": list(release.left),
        "kept_for_s": release.kept_for_s,
    }


def _error_document(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    if isinstance(error, GpuRunnerError):
        return {"brief": error.brief, "details": error.details, "resolution": error.resolution}
    return {"brief": f"{type(error).__name__}: {error}", "details": "", "resolution": ""}
