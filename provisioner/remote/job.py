"""The job on the machine: started, followed and ended through its supervisor, across dropped connections."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from provisioner.errors import BootError, ConfigError, GpuRunnerError, NotFoundError
from provisioner.remote.link import Drops, Link
from provisioner.remote.session import ConnectionLost, ExecResult, Session
from provisioner.resources import template_path

PYTHON_OPTIONS = "-I -S -X utf8"  # a clean, fast start; and names that are no UTF-8 pass through
_SUPERVISOR = "~/.gpu-runner/bin/supervisor.py"
_OLDEST_PYTHON = (3, 8)
_EXIT_OTHER_JOB = 3
_EXIT_NO_JOB = 4
_EXIT_COMMAND_NOT_FOUND = 127
_ANSWER_TIMEOUT_S = 60.0

_INSTALLER = """\
import hashlib, json, os, sys
read = sys.stdin.buffer
base = os.path.expanduser("~/.gpu-runner")
for name in ("", "bin", "job", "guard"):
    os.makedirs(os.path.join(base, name), mode=0o700, exist_ok=True)
for item in json.loads(read.readline()):
    data = read.read(item["size"])
    if hashlib.sha256(data).hexdigest() != item["sha256"]:
        sys.exit("damaged on the way: " + item["name"])
    path = os.path.join(base, "bin", item["name"])
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                continue
    except OSError:
        pass
    temporary = "%s.%d" % (path, os.getpid())
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
print(json.dumps({"version": sys.version_info[:3], "home": os.path.expanduser("~")}))
"""


class JobRunningError(ConfigError):
    """The machine runs another job already."""


class JobState(str, enum.Enum):
    """Where a job is in its life. LOST: its supervisor was killed, how it ended is not known."""

    NONE = "none"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"

    __str__ = str.__str__


@dataclass(frozen=True)
class JobSpec:
    """What to run.

    Attributes:
        token: Names this job: the same token is never started twice on a machine.
        argv: The command, found on the PATH of its environment; no shell.
        setup: Shell commands that run before it, in order; the first that fails ends the job.
        cwd: Where, on the machine.
        env: Added to the login's environment.
        timeout_s: Limit for set-up and command together; None for no limit.
        grace_s: Time between SIGTERM and SIGKILL.
        meta: Free-form, kept on the machine and told with every status: what another controller needs to know.
    """

    token: str
    argv: tuple[str, ...]
    setup: tuple[str, ...] = ()
    cwd: str = "~/work"
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    grace_s: float = 10.0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobStatus:
    """What the machine says of its job.

    Attributes:
        state: Life stage.
        token: Which job.
        exit_code: Its exit code, 128 + n for signal n; None until it ended, or when that is not known.
        signal: The signal that ended it.
        timed_out: Whether its time limit ended it.
        stopped: Whether it was asked to stop.
        failed_in: ``setup`` when it did not get to its command.
        started_utc: Wall-clock time of the machine, for people.
        duration_s: How long it ran, or has been running.
        log_bytes: Length of its log so far.
        log_dropped_bytes: Log that the machine's full disk did not take.
        pid: Process id on the machine.
        meta: As in its JobSpec.
    """

    state: JobState
    token: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    stopped: bool = False
    failed_in: str | None = None
    started_utc: str | None = None
    duration_s: float | None = None
    log_bytes: int = 0
    log_dropped_bytes: int = 0
    pid: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> JobStatus:
        """Read the supervisor's answer; what this version does not know is left out."""
        known = {key: value for key, value in document.items() if key in cls.__dataclass_fields__}
        return cls(**(known | {"state": JobState(document["state"])}))

    @property
    def running(self) -> bool:
        """Whether more may come of it."""
        return self.state is JobState.RUNNING


@dataclass(frozen=True)
class RemotePython:
    """What the machine's Python said when the machine's programs were put in place.

    Attributes:
        version: As (3, 11, 2).
        home: The login's home folder.
    """

    version: tuple[int, ...]
    home: str


class JobClient:
    """Speaks with the supervisor of one machine.

    Args:
        link: The connection to the machine.
        python: The Python command there.
    """

    def __init__(self, link: Link, *, python: str = "python3") -> None:
        self._link = link
        self._python = f"{python} {PYTHON_OPTIONS}"

    def install(self) -> RemotePython:
        """Put the machine's programs in place; one round trip, nothing is written when they are there.

        Returns:
            The machine's Python.

        Raises:
            BootError: The machine has no usable Python.
        """
        command = f"{self._python} -c {shlex.quote(_INSTALLER)}"
        result = self._link.call(lambda session: session.run(command, stdin=_bundle(), timeout_s=_ANSWER_TIMEOUT_S))
        advice = "use an image with Python 3.8 or newer as python3"
        if result.exit_status == _EXIT_COMMAND_NOT_FOUND:
            raise BootError("the machine has no python3", details=_text(result.stderr), resolution=advice)
        answer = _parse(result)
        found = RemotePython(tuple(answer["version"]), answer["home"])
        if found.version < _OLDEST_PYTHON:
            version = ".".join(map(str, found.version))
            raise BootError(f"the machine's Python {version} is too old", resolution=advice)
        return found

    def start(self, spec: JobSpec, secrets: Mapping[str, str] | None = None) -> bool:
        """Start a job; safe to repeat, since the same token is started only once.

        Args:
            spec: What to run.
            secrets: Added to its environment, masked in its log; they travel over the connection's stdin only.

        Returns:
            False when this token had been started before.

        Raises:
            JobRunningError: Another job runs there.
        """
        document = {
            "token": spec.token,
            "argv": list(spec.argv),
            "setup": list(spec.setup),
            "cwd": spec.cwd,
            "env": dict(spec.env),
            "secrets": dict(secrets or {}),
            "timeout_s": spec.timeout_s,
            "grace_s": spec.grace_s,
            "meta": dict(spec.meta),
        }
        if not spec.argv:
            raise ConfigError("there is no command to run")
        result = self._ask("start", stdin=json.dumps(document).encode("ascii"))
        if result.exit_status == _EXIT_OTHER_JOB:
            raise JobRunningError("another job runs on this machine", resolution="gpu-runner attach follows it")
        return not _parse(result)["already"]

    def status(self) -> JobStatus:
        """Where the job is."""
        return JobStatus.parse(_parse(self._ask("status")))

    def stop(self, grace_s: float) -> JobStatus:
        """End the job, and wait for its end.

        Args:
            grace_s: It is killed after so many seconds.

        Returns:
            How it ended.
        """
        result = self._ask(f"stop --grace {grace_s:g}", timeout_s=grace_s + _ANSWER_TIMEOUT_S)
        return JobStatus.parse(_parse(result, ok=(0, _EXIT_NO_JOB)))

    def follow(self, sink: Callable[[bytes], None], offset: int = 0) -> JobStatus:
        """Copy the log until the job has ended; dropped connections neither lose nor double a byte.

        Args:
            sink: Takes each piece.
            offset: Byte of the log to begin with.

        Returns:
            How the job ended.

        Raises:
            NotFoundError: There is no job.
            MachineLostError: The connection did not come back.
        """
        follower = _Follower(sink, offset, self._link.drops())
        while True:
            session = self._link.session()
            try:
                status = follower.copy(session, f"{self._python} {_SUPERVISOR} follow --offset {follower.offset}")
            except ConnectionLost as error:
                follower.drops.wait_after(error)
            else:
                return status

    def read_log(self, sink: Callable[[bytes], None], offset: int = 0) -> None:
        """Copy what there is of the log, without waiting for more.

        Args:
            sink: Takes each piece.
            offset: Byte of the log to begin with.

        Raises:
            NotFoundError: There is no job.
        """
        with self._link.session().open(f"tail -c +{offset + 1} ~/.gpu-runner/job/log") as process:
            while data := process.read():
                sink(data)
            if process.exit_status(_ANSWER_TIMEOUT_S) != 0:
                raise NotFoundError("there is no job on the machine", resolution="see gpu-runner list")

    def _ask(self, verb: str, *, stdin: bytes = b"", timeout_s: float = _ANSWER_TIMEOUT_S) -> ExecResult:
        command = f"{self._python} {_SUPERVISOR} {verb}"
        return self._link.call(lambda session: session.run(command, stdin=stdin, timeout_s=timeout_s))


@dataclass
class _Follower:
    """A walk through the log that can be taken up again."""

    sink: Callable[[bytes], None]
    offset: int
    drops: Drops

    def copy(self, session: Session, command: str) -> JobStatus:
        """Copy until the job has ended.

        Raises:
            ConnectionLost: Take it up again.
        """
        with session.open(command) as process:
            while data := process.read():
                self.sink(data)
                self.offset += len(data)
                self.drops.progress()
            code = process.exit_status(_ANSWER_TIMEOUT_S)
            words = process.stderr_tail
        if code == _EXIT_NO_JOB:
            raise NotFoundError("there is no job on the machine", resolution="gpu-runner list shows what runs where")
        last = words.strip().rpartition(b"\n")[2]
        if code == 0 and last.startswith(b"{"):
            return JobStatus.parse(json.loads(last))
        raise ConnectionLost("the machine stopped sending the log", details=_text(words) or f"exit code {code}")


@cache
def _bundle() -> bytes:
    """The machine's programs, each with its length and hash."""
    paths = (template_path("supervisor.py"), Path(__file__).parent / "tarstream.py")
    files = [(path.name, path.read_bytes()) for path in paths]
    header = [{"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files]
    return json.dumps(header).encode("ascii") + b"\n" + b"".join(data for _, data in files)


def _parse(result: ExecResult, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
    if result.exit_status in ok:
        with contextlib.suppress(ValueError):
            answer: dict[str, Any] = json.loads(result.stdout.strip().rpartition(b"\n")[2])  # after any login banner
            return answer
    details = _text(result.stderr) or _text(result.stdout)[:500] or f"exit code {result.exit_status}"
    raise GpuRunnerError("the machine gave an answer that makes no sense", details=details)


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()
