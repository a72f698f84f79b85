"""Files both ways over a link: verified, and after a drop or a damage only what is missing is sent again."""

from __future__ import annotations

import json
import os
import queue
import secrets
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisioner.clock import Clock
from provisioner.errors import ArtifactsLostError, ConfigError, GpuRunnerError
from provisioner.remote import tarstream
from provisioner.remote.link import Link
from provisioner.remote.session import RemoteEnded, RemoteProcess, Session
from provisioner.remote.wire import TransferError, install, start, why_ended, with_retries
from provisioner.remote.worktree import UploadPlan, plan_upload

__all__ = [
    "Collected",
    "DownloadResult",
    "OutputError",
    "TransferError",
    "TransferStats",
    "UploadPlan",
    "download",
    "install",
    "plan_upload",
    "upload",
]

Progress = Callable[[int, int], object]
"""Told how many files are in place and how many bytes went over the line."""

_PACKET_BYTES = (32 << 10) - 64  # a payload that fills one packet of OpenSSH's
_QUEUED_CHUNKS = 16


class OutputError(ArtifactsLostError):
    """An artifact came home and cannot be written there."""


@dataclass(frozen=True)
class TransferStats:
    """What an upload did.

    Attributes:
        files: How many files, links and folders were sent.
        bytes: Their size.
        seconds: How long it took.
        skipped: What could not be sent, with the reason.
    """

    files: int
    bytes: int
    seconds: float
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DownloadResult:
    """What a download did.

    Attributes:
        files: How many files came and are in place.
        bytes: Their size.
        seconds: How long it took.
        unchanged: How many had come home before and have not changed.
        refused: Names that may not be written here, with the reason.
        unmatched_globs: Globs that name nothing.
        changed: Files that changed while they were read: kept if final, otherwise left for the next time.
        skipped: What is no regular file, or could not be read, with the reason.
    """

    files: int
    bytes: int
    seconds: float
    unchanged: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    unmatched_globs: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass
class Collected:
    """What came home already, so that the next sync leaves it out.

    Attributes:
        known: Size and time of the last change on the machine, in ns, by name.
    """

    known: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, entries: Iterable[tarstream.Entry]) -> None:
        """Remember files that are in place; not those which may yet change without showing it."""
        for entry in entries:
            if entry.got is None and entry.settled:
                self.known[entry.name] = (entry.size, entry.mtime_ns)
            else:
                self.known.pop(entry.name, None)

    def drop_missing(self, output: Path) -> None:
        """Forget what is no longer in the output folder as it came."""
        for name, (size, mtime_ns) in list(self.known.items()):
            try:
                info = os.lstat(os.path.join(os.fsencode(output), tarstream.bytes_of(name)))  # noqa: PTH118 - bytes
            except OSError:
                del self.known[name]
                continue
            if (info.st_size, info.st_mtime_ns) != (size, mtime_ns):
                del self.known[name]


def upload(link: Link, plan: UploadPlan, dest: str, *, on_progress: Progress | None = None) -> TransferStats:
    """Send a work folder.

    Args:
        link: To the machine.
        plan: What to send.
        dest: Folder on the machine; made when missing. ``~/`` is the login's home.
        on_progress: Told how far it is.

    Returns:
        What was sent.

    Raises:
        ConfigError: A file cannot be read here, or has no place there.
        GpuRunnerError: The machine cannot write it.
        TransferError: It kept failing; or MachineLostError, when the connection did.
    """
    task = _Upload(plan, dest, _Meter(link.clock, on_progress))
    return with_retries(link, task.attempt, lambda: task.meter.files)


def download(
    link: Link,
    globs: Iterable[str],
    *,
    root: str,
    output: Path,
    known: Collected,
    final: bool,
    on_progress: Progress | None = None,
) -> DownloadResult:
    """Fetch what globs name.

    Args:
        link: To the machine.
        globs: Relative to the root; see ``tarstream.select``.
        root: Folder on the machine; ``~/`` is the login's home.
        output: Where to; made when missing.
        known: What came home before; brought up to date even if this fails.
        final: Whether there is no next time: a file that changed while it was read is kept then.
        on_progress: Told how far it is.

    Returns:
        What came.

    Raises:
        ConfigError: A glob leads out of the root.
        OutputError: A file cannot be written here.
        TransferError: It kept failing; or MachineLostError, when the connection did.
    """
    wanted = tuple(globs)
    for glob in wanted:
        if why := tarstream.glob_refusal(glob):
            raise ConfigError(f"the artifact glob {glob!r} is {why}", resolution="name files below the work folder")
    if final:
        known.drop_missing(output)
    task = _Download(_Order(wanted, root, output, final), known, _Meter(link.clock, on_progress))
    return with_retries(link, task.attempt, lambda: task.meter.files)


class _Meter:
    """Counts what a transfer did, over all of its attempts."""

    def __init__(self, clock: Clock, on_progress: Progress | None) -> None:
        self._clock = clock
        self._on_progress = on_progress
        self._started_s = clock.elapsed_s()
        self.files = 0
        self.bytes = 0
        self._wire_bytes = 0

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return self._clock.elapsed_s() - self._started_s

    def moved(self, data: bytes) -> bytes:
        """Count bytes that went over the line."""
        self._wire_bytes += len(data)
        self._tell()
        return data

    def done(self, files: int, size: int) -> None:
        """Count files that are in place."""
        self.files += files
        self.bytes += size
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.files, self._wire_bytes)


@dataclass(frozen=True)
class _Order:
    """What a download is to fetch. See ``download``."""

    globs: tuple[str, ...]
    root: str
    output: Path
    final: bool


class _Download:
    """One download, over as many attempts as it takes."""

    def __init__(self, order: _Order, known: Collected, meter: _Meter) -> None:
        self.meter = meter
        self._order = order
        self._known = known
        self._failed: list[str] = []
        self._refused: dict[str, str] = {}
        self._changed: dict[str, None] = {}

    def attempt(self, session: Session) -> DownloadResult:
        """Fetch what is still missing."""
        nonce = secrets.token_hex(16)
        self._failed = []
        request = {"folder": self._order.root, "globs": self._order.globs, "known": self._known.known, "nonce": nonce}
        with start(session, "pack", request) as process:
            report = self._unpack(process, nonce)
        if self._failed:
            raise TransferError("artifacts arrived damaged", details=_listed(self._failed))
        try:
            return self._result(report)
        except (TypeError, ValueError) as error:
            raise TransferError("the machine's report makes no sense", details=str(error)) from error

    def _unpack(self, process: RemoteProcess, nonce: str) -> dict[str, Any]:
        unpacker = tarstream.Unpacker(
            tarstream.Source(lambda size: self.meter.moved(process.read(size))),
            os.fsencode(self._order.output),
            nonce,
            take_changed=self._order.final,
            on_batch=self._on_batch,
        )
        try:
            return unpacker.run()
        except tarstream.TruncatedError as error:
            raise why_ended(process, error) from error
        except tarstream.CorruptError as error:
            raise TransferError("artifacts arrived damaged", details=str(error)) from error
        except tarstream.WriteError as error:
            raise OutputError(
                f"cannot write {tarstream.printable(error.path)}",
                details=f"{error.reason}; {self.meter.files} files are in place",
                resolution="name a folder with room and write permission: --output DIR",
            ) from error
        finally:
            self._refused.update(dict(unpacker.refused.items))
            self._changed.update(dict.fromkeys(name for name, _ in unpacker.changed.items))

    def _on_batch(self, done: list[tarstream.Entry], failed: list[str]) -> None:
        self._known.add(done)
        self._failed += failed
        self.meter.done(len(done), sum(entry.size for entry in done))

    def _result(self, report: dict[str, Any]) -> DownloadResult:
        skipped = [*report.get("skipped", ()), *report.get("unreadable", ())]
        return DownloadResult(
            files=self.meter.files,
            bytes=self.meter.bytes,
            seconds=self.meter.seconds,
            unchanged=int(report.get("unchanged", 0)),
            refused=tuple(self._refused.items()),
            unmatched_globs=tuple(str(glob) for glob in report.get("unmatched", ())),
            changed=tuple(self._changed),
            skipped=tuple((str(name), str(why)) for name, why in skipped),
        )


class _Upload:
    """One upload, over as many attempts as it takes."""

    def __init__(self, plan: UploadPlan, dest: str, meter: _Meter) -> None:
        self.meter = meter
        self._root = os.fsencode(plan.root)
        self._dest = dest
        self._missing = dict.fromkeys(plan.files)
        self._skipped: dict[str, str] = {}

    def attempt(self, session: Session) -> TransferStats:
        """Send what is still missing."""
        nonce = secrets.token_hex(16)
        with start(session, "unpack", {"folder": self._dest, "nonce": nonce}) as process:
            final = self._converse(process, nonce)
        _check_answer(final)
        if self._missing:
            raise TransferError("files arrived damaged", details=_listed(list(self._missing)))
        return TransferStats(self.meter.files, self.meter.bytes, self.meter.seconds, tuple(self._skipped.items()))

    def _converse(self, process: RemoteProcess, nonce: str) -> dict[str, Any]:
        """Send the stream while the answers come in; the last of these."""
        answers = _Answers(process, self._on_batch)
        sender = _Sender(process, self.meter)
        try:
            self._pack(tarstream.Packer(sender.put, nonce))
            sender.finish()
        except RemoteEnded:
            sender.stop()  # its answers, or its exit status, tell why
        except BaseException:
            process.close()
            sender.stop()
            raise
        final = answers.wait()
        if final is None:
            raise why_ended(process, RemoteEnded("the program on the machine ended early"))
        return final

    def _pack(self, packer: tarstream.Packer) -> None:
        for text in list(self._missing):
            name = tarstream.bytes_of(text)
            path = os.path.join(self._root, name)  # noqa: PTH118 - bytes
            skipped = packer.skipped.count
            try:
                mode = os.lstat(path).st_mode
            except OSError as error:
                packer.fail(path, name, error)
            else:
                add = packer.add_link if stat.S_ISLNK(mode) else packer.add_file
                (packer.add_dir if stat.S_ISDIR(mode) else add)(path, name)
            if packer.skipped.count > skipped:
                del self._missing[text]
        self._skipped.update(dict(packer.skipped.items))
        if packer.unreadable.count:
            raise ConfigError(
                f"cannot read {packer.unreadable.count} files of the work folder",
                details=_listed([f"{name}: {why}" for name, why in packer.unreadable.items]),
                resolution="make them readable, or have git ignore them",
            )
        packer.finish({})

    def _on_batch(self, told: dict[str, Any]) -> None:
        for name in told["names"]:
            self._missing.pop(name, None)
        self.meter.done(len(told["names"]), told["bytes"])


def _check_answer(final: dict[str, Any]) -> None:
    """Raise what the machine found wrong for good."""
    if final.get("error") == "write":
        raise GpuRunnerError(
            f"the machine cannot write {tarstream.printable(final['path'])}",
            details=final["reason"],
            resolution="ask for a larger disk: --disk GIB",
        )
    if "error" in final:
        raise TransferError("files arrived damaged", details=final["reason"])
    if final["refused"]:
        raise ConfigError(
            f"{final['refused_count']} files of the work folder have no place on the machine",
            details=_listed([f"{name}: {why}" for name, why in final["refused"]]),
        )


class _Sender:
    """Writes to a remote process on a thread of its own, so that reading and hashing go on meanwhile."""

    def __init__(self, process: RemoteProcess, meter: _Meter) -> None:
        self._process = process
        self._meter = meter
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED_CHUNKS)
        self._rest = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        """Send some more; raises what went wrong with something sent earlier."""
        if self._error is not None:
            raise self._error
        self._queue.put(data)

    def finish(self) -> None:
        """Wait until everything is sent, and end the input."""
        self.stop()
        if self._error is not None:
            raise self._error
        self._process.write(self._rest)
        self._process.close_stdin()

    def stop(self) -> None:
        """Wait until what was put is sent, or has failed."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._error is not None:
                continue  # make room, so that nobody waits
            try:
                self._send(data)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that put the data
                self._error = error

    def _send(self, data: bytes) -> None:
        """Send whole packets; each costs much the same, however little is in it."""
        first = min(len(data), _PACKET_BYTES - len(self._rest)) if self._rest else 0
        if first:
            self._rest += data[:first]
            if len(self._rest) < _PACKET_BYTES:
                return
            self._process.write(self._rest)
        view = memoryview(data)
        last = len(data) - (len(data) - first) % _PACKET_BYTES
        for at in range(first, last, _PACKET_BYTES):
            self._process.write(view[at : at + _PACKET_BYTES])
        self._rest = data[last:]
        self._meter.moved(data)


class _Answers:
    """Reads the lines with which the machine answers, on a thread of its own."""

    def __init__(self, process: RemoteProcess, on_batch: Callable[[dict[str, Any]], object]) -> None:
        self._process = process
        self._on_batch = on_batch
        self._final: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload-answers", daemon=True)
        self._thread.start()

    def wait(self) -> dict[str, Any] | None:
        """The last answer; None if the program ended without."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._final

    def _run(self) -> None:
        rest = b""
        try:
            while data := self._process.read():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error

    def _take(self, told: dict[str, Any]) -> None:
        if "names" in told:
            self._on_batch(told)
        else:
            self._final = told


def _listed(names: list[str]) -> str:
    shown = ", ".join(tarstream.printable(name) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"  # noqa: PLR2004 - enough to see
