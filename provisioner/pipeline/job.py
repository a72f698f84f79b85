"""Run: upload the work folder, start the job, and stay with it to its end."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from provisioner.errors import MachineLostError
from provisioner.pipeline.base import Env, JobRequest
from provisioner.pipeline.boot import Boot
from provisioner.pipeline.collect import WORK_DIR, Collect
from provisioner.pipeline.engine import Ending
from provisioner.remote import heartbeat
from provisioner.remote.job import JobSpec, JobStatus
from provisioner.remote.transfer import plan_upload, upload
from provisioner.units import format_bytes

_LARGE_UPLOAD_BYTES = 100 << 20
_JOB_GRACE_S = 10.0
_STOP_GRACE_S = 5.0


class HasStatus(Protocol):
    """A step that knows how the job stands."""

    @property
    def status(self) -> JobStatus | None:
        """How the job stands; None while that is not known."""
        ...

    @property
    def reached(self) -> bool:
        """Whether it came to deal with the job at all."""
        ...


class Follow:
    """Stays with a job that was started: its log, its end, and its stop when an end is asked for.

    Args:
        env: The collaborators.
        boot: Has the connection.
        collect: Brings artifacts home meanwhile.
        offset: First byte of the log to show.
        attached: Whether the guard expects a controller already; else it is told first.
    """

    name = "run"

    def __init__(self, env: Env, boot: Boot, collect: Collect, *, offset: int = 0, attached: bool = True) -> None:
        self._env = env
        self._boot = boot
        self._collect = collect
        self._offset = offset
        self._attached = attached
        self._wake = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        self._started = False
        self._status: JobStatus | None = None

    @property
    def status(self) -> JobStatus | None:
        """How the job ended; None while that is not known."""
        return self._status

    @property
    def reached(self) -> bool:
        """Whether the job is being followed."""
        return self._started

    def run(self) -> None:
        """Show the log until the job ends.

        Raises:
            CancelledError: An end was asked for first.
            MachineLostError: The machine went away first.
        """
        if not self._attached:
            heartbeat.command(self._boot.connection.link, mode="attached")
        self._started = self._boot.connection.job_began = True
        self._collect.begin()
        self._env.cancel.when_soft(self._wake.set)
        self._thread.start()
        self._wait()
        self._env.cancel.check()
        if self._failure is not None:
            raise self._lost(self._failure)
        self._env.timeline.mark("job_ended_s")

    def cleanup(self, ending: Ending) -> None:
        """Stop the job if it runs; what it wrote until then is shown."""
        if ending is Ending.LEAVE or not self._started or self._status is not None:
            return
        if self._env.cancel.hard.is_set() or self._boot.connection.watch.lost is not None:
            return
        self._status = self._boot.connection.job.stop(_STOP_GRACE_S)
        self._env.timeline.mark("job_ended_s")
        self._thread.join(timeout=_STOP_GRACE_S)

    def _wait(self) -> None:
        while not self._wake.is_set():
            self._env.clock.wait(self._wake, 3600)

    def _follow(self) -> None:
        try:
            self._status = self._boot.connection.job.follow(self._env.observer.log, self._offset)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._failure = error
        self._wake.set()

    def _lost(self, failure: BaseException) -> BaseException:
        lost = self._boot.connection.watch.lost
        if lost is not None:
            return lost
        if isinstance(failure, MachineLostError):
            self._boot.connection.watch.look()  # the provider may know why
            return self._boot.connection.watch.lost or failure
        return failure


class Job:
    """Uploads and starts the job, then follows it, or leaves it to itself with ``detach``.

    Args:
        env: The collaborators.
        request: What is wanted.
        boot: Has the connection.
        collect: Brings artifacts home.
    """

    name = "run"

    def __init__(self, env: Env, request: JobRequest, boot: Boot, collect: Collect) -> None:
        self._env = env
        self._request = request
        self._boot = boot
        self._follow = Follow(env, boot, collect)

    @property
    def status(self) -> JobStatus | None:
        """How the job ended; None while that is not known."""
        return self._follow.status

    @property
    def reached(self) -> bool:
        """Whether the job was started."""
        return self._boot.connection.job_began

    def run(self) -> None:
        """Upload, start, stay.

        Raises:
            CancelledError: An end was asked for.
            MachineLostError: The machine went away.
        """
        self._upload()
        self._env.cancel.check()
        self._boot.connection.job_began = True
        self._start()
        if self._request.detach:
            heartbeat.command(self._boot.connection.link, mode="detached")
        else:
            self._follow.run()

    def cleanup(self, ending: Ending) -> None:
        """See Follow."""
        self._follow.cleanup(ending)

    def _upload(self) -> None:
        plan = plan_upload(self._request.workdir)
        size = f"{len(plan.files)} files, {format_bytes(plan.total_bytes)}"
        self._env.observer.step("upload", f"{plan.root} ({size})")
        if plan.total_bytes > _LARGE_UPLOAD_BYTES:
            self._env.observer.warning(f"uploading {size}; files that git ignores stay here (.gitignore)")
        if plan.note:
            self._env.observer.note(plan.note)
        for name in plan.left_out:
            self._env.observer.warning(f"not uploaded: {name!r} is no file, folder or link")

        def tell(_files: int, wire_bytes: int) -> None:
            self._env.observer.progress(wire_bytes, plan.total_bytes)

        upload(self._boot.connection.link, plan, WORK_DIR, on_progress=tell)
        self._env.timeline.mark("uploaded_s")

    def _start(self) -> None:
        request = self._request
        self._env.observer.step(self.name, " ".join(request.command))
        spec = JobSpec(
            token=request.lease.holder,
            argv=request.command,
            cwd=WORK_DIR,
            env={"GPU_RUNNER_LEASE": request.lease.id, **request.env},
            setup=request.setup,
            timeout_s=self._timeout_s(),
            grace_s=_JOB_GRACE_S,
            meta=_meta(request),
        )
        self._boot.connection.job.start(spec, request.secrets)
        self._env.timeline.mark("job_started_s")

    def _timeout_s(self) -> float:
        """The job's time limit, cut where the lease would end before its results are home."""
        request = self._request
        spent_s = self._env.timeline.now_s()
        return max(1.0, min(request.timeout_s, request.lease.ttl_s - spent_s - request.collect_allowance_s))


class LookOnce:
    """Asks how the job stands, without waiting for it; what it wrote comes home either way.

    Args:
        env: The collaborators.
        boot: Has the connection.
        collect: Brings artifacts home.
    """

    name = "look"

    def __init__(self, env: Env, boot: Boot, collect: Collect) -> None:
        self._env = env
        self._boot = boot
        self._collect = collect
        self._status: JobStatus | None = None
        self._home = False

    @property
    def status(self) -> JobStatus | None:
        """How the job stands; None while that is not known."""
        return self._status

    @property
    def reached(self) -> bool:
        """Whether everything is home, so that the machine is of no more use once its job has ended."""
        return self._home

    def run(self) -> None:
        """Ask, bring home what there is, and leave the machine to itself again if its job still runs.

        Raises:
            ArtifactsLostError: Not everything came home: the machine must not go yet.
        """
        heartbeat.command(self._boot.connection.link, mode="detached")
        self._boot.connection.job_began = True
        self._status = self._boot.connection.job.status()
        self._collect.begin()
        self._collect.finish()
        if self._collect.error is not None:
            raise self._collect.error
        self._home = True

    def cleanup(self, ending: Ending) -> None:
        """Nothing to undo."""


def _meta(request: JobRequest) -> dict[str, Any]:
    """What ``attach`` and ``collect`` need to know on another day, from another disk."""
    return {
        "artifacts": list(request.artifacts),
        "require_artifacts": request.require_artifacts,
        "command": list(request.command),
    }
