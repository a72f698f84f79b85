"""Collect: artifacts come home while the job runs, and for the last time before the release."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from provisioner.cancel import CancelReason
from provisioner.errors import ArtifactsLostError, ExitCode, GpuRunnerError
from provisioner.pipeline.base import Env
from provisioner.pipeline.boot import Boot
from provisioner.pipeline.engine import Ending
from provisioner.remote.transfer import Collected, DownloadResult, download

WORK_DIR = "~/work"
FLUSH_AFTER_CANCEL_S = 30.0
_TOO_LONG = CancelReason(f"artifacts were not home {FLUSH_AFTER_CANCEL_S:.0f} s after the request", ExitCode.TERMINATED)


@dataclass
class ArtifactTotals:
    """What came home so far.

    Attributes:
        files: Files that are home.
        bytes: Bytes that were transferred for them.
        seconds: Time that the transfers took.
    """

    files: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Collect:
    """Brings artifacts home. Entered before the job starts, so that its clean-up runs however the job ends.

    Args:
        env: The collaborators.
        boot: Has the connection.
        artifacts: Globs, relative to the work folder on the machine.
        output: Folder they come to.
        require: Whether a glob that matches nothing is an error.
        sync_every_s: Seconds between syncs; None for none.

    Attributes:
        totals: What came home.
        error: Why artifacts are missing; None when all are home.
    """

    name = "collect"

    def __init__(
        self,
        env: Env,
        boot: Boot,
        *,
        artifacts: tuple[str, ...],
        output: Path,
        require: bool,
        sync_every_s: float | None,
    ) -> None:
        self._env = env
        self._boot = boot
        self._artifacts = artifacts
        self._output = output
        self._require = require
        self._sync_every_s = sync_every_s
        self._known = Collected()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = False
        self._flushed = False
        self._warned: set[str] = set()
        self.totals = ArtifactTotals()
        self.error: ArtifactsLostError | None = None

    def run(self) -> None:
        """Nothing yet: there are no artifacts before the job starts."""

    def begin(self) -> None:
        """The job has started: from now on there may be something to bring home."""
        self._began = True
        if self._artifacts and self._sync_every_s is not None:
            self._thread = threading.Thread(target=self._sync_loop, name="sync", daemon=True)
            self._thread.start()

    def cleanup(self, ending: Ending) -> None:  # noqa: ARG002 - what is there comes home either way
        """The last flush, if nothing came to it yet."""
        self.finish()

    def finish(self) -> None:
        """The last flush: once, within 30 s if somebody waits for the end, and not at all if there is no time."""
        self._stop.set()
        if self._began and not self._flushed and not self._env.cancel.hard.is_set():
            self._flushed = True
            self._flush()

    def leave(self) -> None:
        """What is on the machine stays there for a later ``collect``."""
        self._stop.set()
        self._began = False

    def _flush(self) -> None:
        """Bring everything home; a failure is kept in ``error``."""
        self._env.observer.step(self.name, ", ".join(self._artifacts) or "no artifacts asked for")
        limit = self._limit_after_cancel()
        try:
            if self._artifacts:
                self._judge(self._fetch(final=True))
        except GpuRunnerError as error:
            self.error = _lost(error)
        finally:
            limit.cancel()
            self._env.timeline.mark("collected_s")

    def _limit_after_cancel(self) -> threading.Timer:
        """A flush that somebody waits for is given up after a time."""
        cancel = self._env.cancel
        timer = threading.Timer(FLUSH_AFTER_CANCEL_S, lambda: cancel.request(_TOO_LONG, hard=True))
        timer.daemon = True
        cancel.when_soft(timer.start)
        return timer

    def _sync_loop(self) -> None:
        while not self._env.clock.wait(self._stop, self._sync_every_s or 0):
            try:
                self._fetch(final=False)
            except GpuRunnerError as error:
                self._warn_once(f"artifacts could not be synced: {error.brief}")

    def _fetch(self, *, final: bool) -> DownloadResult:
        with self._lock:
            result = download(
                self._boot.connection.link,
                self._artifacts,
                root=WORK_DIR,
                output=self._output,
                known=self._known,
                final=final,
                on_progress=self._tell if final else None,
            )
            self.totals.files = result.files + result.unchanged
            self.totals.bytes += result.bytes
            self.totals.seconds += result.seconds
        return result

    def _tell(self, _files: int, wire_bytes: int) -> None:
        self._env.observer.progress(wire_bytes, None)

    def _judge(self, result: DownloadResult) -> None:
        for name, why in result.refused:
            self._env.observer.warning(f"refused from the machine: {name!r}: {why}")
        if result.refused:
            self.error = ArtifactsLostError(f"{len(result.refused)} artifacts were refused")
        missing = ", ".join(repr(glob) for glob in result.unmatched_globs)
        if missing and self._require:
            self.error = ArtifactsLostError(f"nothing matched --artifact {missing}")
        elif missing:
            self._env.observer.warning(f"nothing matched --artifact {missing}")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and not self._stop.is_set():
            self._warned.add(text)
            self._env.observer.warning(text)


def _lost(error: GpuRunnerError) -> ArtifactsLostError:
    return ArtifactsLostError(
        f"artifacts are not home: {error.brief}", details=error.details, resolution=error.resolution
    )
