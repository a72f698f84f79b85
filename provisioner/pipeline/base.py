"""What all steps share: the request, the collaborators, the timeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provisioner.cancel import Cancel
from provisioner.clock import Clock
from provisioner.models import Lease, Offer, SshKeys
from provisioner.pipeline.observer import Observer
from provisioner.providers.base import Provider
from provisioner.store import LeaseStore


@dataclass(frozen=True)
class Env:
    """The collaborators of every step.

    Attributes:
        provider: Where the machine comes from.
        clock: Time.
        cancel: The request to end early.
        observer: Who watches.
        store: The state folder.
        timeline: When each step was reached.
    """

    provider: Provider
    clock: Clock
    cancel: Cancel
    observer: Observer
    store: LeaseStore
    timeline: Timeline


@dataclass(frozen=True)
class JobRequest:
    """What the user wants run, and where its results go.

    Attributes:
        lease: The lease to be had.
        private_key: The controller's private key for it, OpenSSH PEM.
        ssh: What the machine gets of the lease's keys.
        offers: What may be bought, best first.
        command: The job's argument list.
        workdir: Folder to upload.
        timeout_s: The job's time limit.
        collect_allowance_s: Part of the lease kept back for artifacts and release.
        env: Environment of the job.
        secrets: The same, masked in logs and never on a disk.
        setup: Shell commands to run before it.
        artifacts: Globs of what comes home.
        output: Folder where it comes to.
        require_artifacts: Whether a glob that matches nothing is an error.
        sync_every_s: How often artifacts come home while the job runs; None for only at its end.
        keep_on_failure_s: How long a machine is kept after the job failed; None ends it at once.
        detach: Whether to leave once the job runs.
        wait_capacity_s: How long the offers are gone round again when none can be had.
        image: Image wished for.
        disk_gib: Root disk wished for.
    """

    lease: Lease
    private_key: str = field(repr=False)
    ssh: SshKeys
    offers: Sequence[Offer]
    command: tuple[str, ...]
    workdir: Path
    timeout_s: float
    collect_allowance_s: float
    output: Path
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    setup: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    require_artifacts: bool = False
    sync_every_s: float | None = 30.0
    keep_on_failure_s: float | None = None
    detach: bool = False
    wait_capacity_s: float = 0.0
    image: str | None = None
    disk_gib: int | None = None


class Timeline:
    """Seconds from the start at which each mark was reached.

    Args:
        clock: What it is measured on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start_s = clock.elapsed_s()
        self.marks: dict[str, float] = {}

    def now_s(self) -> float:
        """Seconds since the start."""
        return self._clock.elapsed_s() - self._start_s

    def mark(self, name: str) -> None:
        """Note that a mark was reached; the first time counts.

        Args:
            name: As ``placed_s``.
        """
        self.marks.setdefault(name, round(self.now_s(), 3))


def wait_until(env: Env, ready: Callable[[], bool], timeout_s: float) -> bool:
    """Ask again and again until something is so, the time is over, or an end is asked for.

    Args:
        env: Clock, cancel and the provider's pace.
        ready: The question; its errors pass through.
        timeout_s: Longest wait in seconds.

    Returns:
        Whether it became so in time.

    Raises:
        CancelledError: If an end was asked for meanwhile.
    """
    end_s = env.clock.elapsed_s() + timeout_s
    while not ready():
        if env.clock.elapsed_s() >= end_s:
            return False
        env.cancel.check()
        env.clock.wait(env.cancel.soft, env.provider.traits.poll_s)
    return True
