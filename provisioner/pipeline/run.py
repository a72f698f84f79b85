"""Job mode, whole: the steps of a lease in reading order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provisioner.models import Lease, Machine
from provisioner.pipeline.adopt import Adopt
from provisioner.pipeline.base import Env, JobRequest
from provisioner.pipeline.boot import Boot, HasMachine
from provisioner.pipeline.collect import Collect
from provisioner.pipeline.engine import Ending, Step, Steps
from provisioner.pipeline.job import Follow, HasStatus, Job, LookOnce
from provisioner.pipeline.place import Place
from provisioner.pipeline.release import Release, ReleaseResult
from provisioner.pipeline.result import RunResult
from provisioner.remote import heartbeat


@dataclass(frozen=True)
class ArtifactRequest:
    """What comes home, and where to.

    Attributes:
        globs: Relative to the work folder on the machine.
        output: Folder here.
        require: Whether a glob that matches nothing is an error.
        sync_every_s: Seconds between syncs while the job runs; None for none.
    """

    globs: tuple[str, ...]
    output: Path
    require: bool
    sync_every_s: float | None


def run_job(env: Env, request: JobRequest) -> RunResult:
    """Place, boot, run, collect, release.

    Args:
        env: The collaborators.
        request: What is wanted.

    Returns:
        How it ended; nothing is raised for what went wrong on the way.
    """
    artifacts = ArtifactRequest(
        request.artifacts, request.output, request.require_artifacts, None if request.detach else request.sync_every_s
    )
    release = Release(env, request.lease)
    place = Place(env, request, release)
    boot = Boot(env, place)
    collect = _collect(env, boot, artifacts)
    job = Job(env, request, boot, collect)
    flow = _Flow(env, request.lease, release, place, boot, collect, job, artifacts.output)
    return flow.go([release, place, boot, collect, job], keep_s=request.keep_on_failure_s, detach=request.detach)


def attach_job(
    env: Env, found: Machine, lease: Lease, artifacts: ArtifactRequest, *, offset: int, take_over: bool
) -> RunResult:
    """Go on with a job whose controller has gone, as if it never had.

    Args:
        env: The collaborators.
        found: The machine as it was found.
        lease: Its lease, with our own holder.
        artifacts: What comes home.
        offset: First byte of the log to show.
        take_over: Whether to take it even from a controller that is alive.

    Returns:
        How it ended.
    """
    release = Release(env, lease)
    adopt = Adopt(env, found, lease, release, take_over=take_over)
    boot = Boot(env, adopt)
    collect = _collect(env, boot, artifacts)
    follow = Follow(env, boot, collect, offset=offset, attached=False)
    flow = _Flow(env, lease, release, adopt, boot, collect, follow, artifacts.output, adopted=True)
    return flow.go([release, adopt, boot, collect, follow], keep_s=None, detach=False)


def collect_job(env: Env, found: Machine, lease: Lease, artifacts: ArtifactRequest, *, take_over: bool) -> RunResult:
    """Bring artifacts home; release the machine if its job has ended, else leave it as it is.

    Args:
        env: The collaborators.
        found: The machine as it was found.
        lease: Its lease, with our own holder.
        artifacts: What comes home.
        take_over: Whether to take it even from a controller that is alive.

    Returns:
        How it ended.
    """
    release = Release(env, lease)
    adopt = Adopt(env, found, lease, release, take_over=take_over)
    boot = Boot(env, adopt)
    collect = _collect(env, boot, artifacts)
    look = LookOnce(env, boot, collect)
    flow = _Flow(env, lease, release, adopt, boot, collect, look, artifacts.output, adopted=True)
    return flow.go([release, adopt, boot, collect, look], keep_s=None, detach=False)


def _collect(env: Env, boot: Boot, artifacts: ArtifactRequest) -> Collect:
    return Collect(
        env,
        boot,
        artifacts=artifacts.globs,
        output=artifacts.output,
        require=artifacts.require,
        sync_every_s=artifacts.sync_every_s,
    )


@dataclass(frozen=True)
class _Flow:
    """The steps of one lease, and what they leave for the result."""

    env: Env
    lease: Lease
    release: Release
    source: HasMachine
    boot: Boot
    collect: Collect
    job: HasStatus
    output: Path
    adopted: bool = False

    def go(self, order: list[Step], *, keep_s: float | None, detach: bool) -> RunResult:
        steps = Steps(order, self.env.cancel)
        failure = self._first_cause(steps.run())
        left = self._left_running(failure, detach=detach)
        if failure is None and not left:
            self.collect.finish()
        kept_for_s = self._lease_left_s() if left else self._kept_after_failure(failure, keep_s)
        if left:
            self.collect.leave()
        problems = steps.cleanup(Ending.RELEASE if kept_for_s is None else Ending.LEAVE)
        kept = None if kept_for_s is None else ReleaseResult(False, False, 0.0, kept_for_s=kept_for_s)
        return RunResult(
            lease=self.lease,
            machine=self.source.machine,
            timeline=self.env.timeline.marks,
            status=self.job.status,
            totals=self.collect.totals,
            output=str(self.output),
            release=kept or self.release.result,
            error=failure or self._first_cause(self.collect.error),
            problems=problems if failure is None or self.collect.error is None else (*problems, self.collect.error),
            detached=left,
        )

    def _left_running(self, failure: BaseException | None, *, detach: bool) -> bool:
        """Whether the machine stays: by wish, or since its results would go with it."""
        if failure is None:
            status = self.job.status
            return detach or (status is not None and status.running)
        return self.adopted and self.source.machine is not None and not self.job.reached

    def _kept_after_failure(self, failure: BaseException | None, keep_s: float | None) -> float | None:
        status = self.job.status
        if failure is not None or keep_s is None or status is None:
            return None
        failed = status.exit_code != 0 or self.collect.error is not None
        return self._keep(keep_s) if failed else None

    def _keep(self, keep_s: float) -> float | None:
        """Tell the guard how long the machine of a failed job stays; None if it could not be told."""
        keep_s = min(keep_s, self._lease_left_s())
        try:
            heartbeat.command(self.boot.connection.link, mode="detached", end_in_s=keep_s)
        except Exception as error:  # noqa: BLE001 - a machine that can't be told to end itself is not kept
            self.env.observer.warning(f"the machine is not kept: {error}")
            return None
        return keep_s

    def _first_cause(self, failure: BaseException | None) -> BaseException | None:
        """A step that an end was asked for in fails in its own words; what counts is who asked."""
        asked = failure is not None and self.env.cancel.soft.is_set()
        return self.env.cancel.error() if asked else failure

    def _lease_left_s(self) -> float:
        """Time until the hard deadline, as far as it is known here: from when the machine was last described."""
        machine = self.source.machine
        left_s = machine.hard_deadline_in_s() if machine is not None else None
        return max(0.0, self.lease.ttl_s if left_s is None else left_s)
