"""The job's supervisor: runs one job on the machine, whatever becomes of the connection that started it.

One file, standard library only, Python 3.8 or newer, Linux. Verbs, each with JSON answers on stdout:

    start               reads one JSON document from stdin and leaves a daemon that owns the job
    status              tells where the job is
    follow --offset N   copies the log from byte N to stdout until the job has ended; then the status to stderr
    stop [--grace S]    ends the job, by force after S seconds

All verbs but start take --job-dir. The daemon holds a lock on ``lock`` in the job's folder for as long as it lives, so
that a record that says "running" beside a free lock means that the daemon was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any, Iterator

DEFAULT_DIR = "~/.gpu-runner/job"
MARKER = "GPU_RUNNER_JOB"
EXIT_USAGE, EXIT_OTHER_JOB, EXIT_NO_JOB = 2, 3, 4
CHUNK_BYTES = 64 << 10
RECORD_BYTES = 4096
LEFTOVERS_S = 1.0
KILL_S = 5.0
TICK_S = 0.02
SHORTEST_SECRET_LINE = 4
PR_SET_CHILD_SUBREAPER = 36
F_SETPIPE_SZ = 1031

Json = Any


def boot_s() -> float:
    """Seconds on a clock that nobody can set and that runs through suspend."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Masker:
    """Replaces secrets in a stream by ``***``; what may still become a secret waits, everything else passes at once.

    Every byte that belongs to any occurrence of any secret is masked, also where occurrences overlap; neighbours
    become one ``***``. Each line of a secret of several lines is a secret too.
    """

    def __init__(self, secrets: list[bytes]) -> None:
        patterns = set()
        for secret in secrets:
            patterns |= {secret, secret.strip()}
            lines = [line.strip() for line in secret.splitlines()]
            patterns |= {line for line in lines if len(line) >= SHORTEST_SECRET_LINE}
        self._patterns = sorted(patterns - {b""})
        self._held = b""
        self._covered = 0  # so many of the held bytes belong to a secret that began before them
        self._in_run = False

    def feed(self, data: bytes) -> bytes:
        """What may be shown after this piece of the stream."""
        if not self._patterns:
            return data
        text = self._held + data
        return self._advance(text, self._first_open(text))

    def flush(self) -> bytes:
        """What is still held at the end of the stream."""
        return self._advance(self._held, len(self._held))

    def _first_open(self, text: bytes) -> int:
        """Where the first unfinished occurrence of a secret may begin."""
        first = len(text)
        for pattern in self._patterns:
            at = text.find(pattern[:1], max(0, len(text) - len(pattern) + 1))
            while -1 < at < first:
                if pattern.startswith(text[at:]):
                    first = at
                    break
                at = text.find(pattern[:1], at + 1)
        return first

    def _advance(self, text: bytes, end: int) -> bytes:
        shown = []
        at = 0
        covered = max(0, self._covered - end)
        for begin, stop in self._spans(text):
            if begin >= end:
                break
            if begin > at:
                shown.append(text[at:begin])
                self._in_run = False
            if not self._in_run:
                shown.append(b"***")
                self._in_run = True
            at = min(stop, end)
            covered = max(0, stop - end)
        if at < end:
            shown.append(text[at:end])
            self._in_run = False
        self._held, self._covered = text[end:], covered
        return b"".join(shown)

    def _spans(self, text: bytes) -> list[list[int]]:
        """The masked parts of the text, in order, none touching another."""
        spans = [[0, self._covered]] if self._covered else []
        for pattern in self._patterns:
            at = text.find(pattern)
            while at >= 0:
                if spans and spans[-1][0] <= at <= spans[-1][1]:
                    spans[-1][1] = max(spans[-1][1], at + len(pattern))
                else:
                    spans.append([at, at + len(pattern)])
                at = text.find(pattern, at + 1)
        merged: list[list[int]] = []
        for span in sorted(spans):
            if merged and span[0] <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], span[1])
            else:
                merged.append(span)
        return merged


class Log:
    """The log file. What cannot be written (a full disk) is counted and dropped: the job goes on."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._gap = 0
        self.dropped = 0

    def write(self, data: bytes) -> None:
        """Append, or count as dropped."""
        if self._gap and data:
            note = b"\n[gpu-runner: %d bytes of log were dropped here: the disk was full]\n" % self._gap
            self._gap = self._gap if self._put(note) else 0
        lost = len(data) if self._gap else self._put(data)
        self._gap += lost
        self.dropped += lost

    def _put(self, data: bytes) -> int:
        """Write; returns how many bytes could not be."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError:
                return len(view)
        return 0


class Folder:
    """The job's folder: its lock, its record, its log."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self.log = os.path.join(self.path, "log")
        self._record = os.path.join(self.path, "status.json")
        self._reserve = os.path.join(self.path, ".status.reserve")
        self._old = os.path.join(self.path, ".status.old")
        self._lock = os.path.join(self.path, "lock")

    def lock(self) -> int | None:
        """Take the lock; None when somebody has it. The lock lives as long as the returned descriptor."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def locked(self) -> bool:
        """Whether a supervisor lives."""
        try:
            fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def holder(self) -> Json:
        """What the holder of the lock says of itself; may be empty for a moment after it took the lock."""
        return _read_json(self._lock)

    @staticmethod
    def sign(lock_fd: int, token: str, pid: int) -> None:
        """Write into the lock who holds it."""
        text = json.dumps({"token": token, "pid": pid}).encode()
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, text, 0)

    def record(self) -> Json:
        """The record as last written; empty when there is none."""
        return _read_json(self._record)

    def write(self, name: str, document: Json) -> None:
        """Write a further document for people and for the other verbs."""
        temporary = os.path.join(self.path, ".%s.%d" % (name, os.getpid()))
        with open(temporary, "w", opener=_private) as file:
            json.dump(document, file)
        os.replace(temporary, os.path.join(self.path, name))

    def read(self, name: str) -> Json:
        """Read it back; empty when there is none."""
        return _read_json(os.path.join(self.path, name))

    def write_record(self, record: Json) -> None:
        """Replace the record in one step. Its room on disk was taken beforehand, so that a full disk does no harm."""
        fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, json.dumps(record).encode().ljust(RECORD_BYTES), 0)
        finally:
            os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.link(self._record, self._old)
        os.replace(self._reserve, self._record)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._old, self._reserve)

    def reserve(self) -> None:
        """Take the room on disk for a later record."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._old)
        with open(self._reserve, "wb", opener=_private) as file:
            file.write(b" " * RECORD_BYTES)

    def status(self) -> Json:
        """The record as it stands now."""
        record = self.record()
        if record.get("state") == "running" and not self.locked():
            record = self.record()  # it may have ended between the two looks
            if record.get("state") == "running":
                record["state"] = "lost"
        if not record:
            return {"state": "none"}
        began_s = record.pop("began_boot_s", None)
        record.pop("boot_id", None)
        if record["state"] == "running" and began_s is not None:
            record["duration_s"] = boot_s() - began_s
        with contextlib.suppress(OSError):
            record["log_bytes"] = os.stat(self.log).st_size
        return record

    def answer(self) -> Json:
        """The record, with what the controller wished to be remembered."""
        spec = self.read("spec.json")
        status = self.status()
        return dict(status, meta=(spec.get("meta") if spec.get("token") == status.get("token") else None) or {})


class Processes:
    """Finds and kills what a job left behind, by descent and by the marker in its environment."""

    def __init__(self, token: str, *, by_marker: bool, session: int | None = None) -> None:
        self._marker = ("%s=%s" % (MARKER, token)).encode()
        self.by_marker = by_marker
        self._session = session

    def alive(self) -> list[int]:
        """Process ids, without zombies and without this process."""
        table = {pid: stat for pid, stat in _process_table() if stat[0] != "Z"}
        found = {pid for pid in table if self._descends(pid, table)}
        if self.by_marker:
            found |= {pid for pid, stat in table.items() if stat[2] == self._session or self._marked(pid)}
        return sorted(found - {os.getpid()})

    def kill(self, number: int) -> None:
        """Signal all of them once."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def end(self, reap: Any) -> int:
        """Kill until none is left, or for a few seconds; returns how many are left."""
        limit = boot_s() + KILL_S
        while boot_s() < limit:
            self.kill(signal.SIGKILL)
            reap()
            if not self.alive():
                return 0
            time.sleep(TICK_S / 2)
        return len(self.alive())

    @staticmethod
    def _descends(pid: int, table: dict[int, tuple[str, int, int]]) -> bool:
        me = os.getpid()
        for _ in range(len(table)):
            if pid not in table:
                return False
            pid = table[pid][1]
            if pid == me:
                return True
        return False

    def _marked(self, pid: int) -> bool:
        try:
            with open("/proc/%d/environ" % pid, "rb") as file:
                return self._marker in file.read().split(b"\0")
        except OSError:
            return False


class Supervisor:
    """Runs the steps of a job, one after the other, and ends everything that they started."""

    def __init__(self, spec: Json, folder: Folder, record: Json) -> None:
        self._folder = folder
        self._record = record
        self._log = Log(folder.log)
        self._masker = Masker([os.fsencode(value) for value in spec.get("secrets", {}).values()])
        self._env = _environment(spec)
        self._cwd = os.path.expanduser(spec.get("cwd") or "~/work")
        self._steps = [["/bin/sh", "-ec", command] for command in spec.get("setup") or []] + [spec["argv"]]
        self._grace_s = float(spec.get("grace_s", 10.0))
        self._began_s = record["began_boot_s"]
        self._deadline_s = _at(self._began_s, spec.get("timeout_s"))
        self._processes = Processes(spec["token"], by_marker=not _become_subreaper())
        self._read_fd, self._write_fd = _pipe()
        self._pid: int | None = None  # of the step that runs
        self._group = 0
        self._kill_at_s: float | None = None
        self._ended_s: float | None = None
        self._stop_asked = False
        self._saved = (0, 0.0)  # how much was dropped when the record was last written for that, and when
        self._childless = False

    def run(self, ready_fd: int, lock_fd: int) -> None:
        """Run the job to its end."""
        self._wake_fd = self._listen_for_signals()
        Folder.sign(lock_fd, self._record["token"], os.getpid())  # from here on it can be asked to stop
        self._next_step()
        with contextlib.suppress(OSError):
            self._save()
        os.write(ready_fd, json.dumps({"started": True, "already": False, "pid": self._record["pid"]}).encode())
        os.close(ready_fd)
        poller = select.poll()
        poller.register(self._read_fd, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while not self._over():
            for fd, _ in poller.poll(self._nap_ms()):
                if fd == self._wake_fd:
                    os.read(fd, 4096)
                elif not self._pump():
                    poller.unregister(fd)
            self._reap()
            self._enforce()
        self._finish()

    def _next_step(self) -> None:
        """Start the next step; a step that cannot be started ends the job."""
        import subprocess

        argv = self._steps.pop(0)
        try:
            os.makedirs(self._cwd, exist_ok=True)
            process = subprocess.Popen(
                argv,
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=self._write_fd,
                stderr=self._write_fd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._log.write(
                self._masker.feed(("gpu-runner: cannot start the job: %s\n" % error).encode(errors="replace"))
            )
            missing = getattr(error, "errno", None) == errno.ENOENT
            self._step_ended(127 if missing else 126, None)
            return
        process.returncode = 0  # this process reaps all its children itself
        self._pid = self._group = self._record["pid"] = process.pid
        if not self._steps:
            os.close(self._write_fd)
            self._write_fd = -1

    def _step_ended(self, code: int, number: int | None) -> None:
        self._pid = None
        if code == 0 and self._steps and self._kill_at_s is None:
            self._next_step()
            return
        self._ended_s = boot_s()
        duration_s = self._ended_s - self._began_s
        self._record.update(exit_code=code, signal=number, duration_s=duration_s)
        if self._steps:
            self._record["failed_in"] = "setup"
            self._steps = []

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = not self._processes.by_marker
                return
            if pid == 0:
                return
            if pid == self._pid and os.WIFSIGNALED(status):
                self._step_ended(128 + os.WTERMSIG(status), os.WTERMSIG(status))
            elif pid == self._pid:
                self._step_ended(os.WEXITSTATUS(status), None)

    def _pump(self) -> bool:
        """Copy some output; False at its end."""
        try:
            data = os.read(self._read_fd, CHUNK_BYTES)
        except BlockingIOError:
            return True
        self._log.write(self._masker.feed(data))
        return bool(data)

    def _enforce(self) -> None:
        now_s = boot_s()
        if self._stop_asked:
            self._stop_asked = False
            self._end("stopped", float(self._folder.read("stop.json").get("grace_s", self._grace_s)))
        if self._deadline_s is not None and now_s >= self._deadline_s:
            self._end("timed_out", self._grace_s)
        if self._kill_at_s is not None and now_s >= self._kill_at_s and self._ended_s is None:
            self._processes.kill(signal.SIGKILL)
            os.kill(self._group, signal.SIGKILL)  # not reaped yet; by hand, for a zombie may have living threads
        if self._log.dropped != self._saved[0] and now_s > self._saved[1] + 1.0:
            self._saved = (self._log.dropped, now_s)
            with contextlib.suppress(OSError):
                self._save()

    def _end(self, reason: str, grace_s: float) -> None:
        """Ask the job to end; a second call can only hurry it."""
        kill_at_s = boot_s() + grace_s
        if self._ended_s is not None:
            return
        if self._kill_at_s is not None:
            self._kill_at_s = min(self._kill_at_s, kill_at_s)
            return
        self._kill_at_s = kill_at_s
        self._record[reason] = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGTERM)
            os.killpg(self._group, signal.SIGCONT)

    def _over(self) -> bool:
        """Whether the job has ended and what it left behind is gone, or has had its time."""
        if self._ended_s is None:
            return False
        if self._childless or not self._processes.alive():
            return True
        limit_s = self._ended_s + LEFTOVERS_S
        if self._kill_at_s is not None and _group_alive(self._group):
            limit_s = max(limit_s, self._kill_at_s)  # a shell dies at once, what it ran may be saving its work
        return boot_s() >= limit_s

    def _finish(self) -> None:
        self._record["left_over"] = 0 if self._childless else self._processes.end(self._reap)
        limit_s = boot_s() + KILL_S
        while boot_s() < limit_s and self._available() and self._pump():
            continue
        self._log.write(self._masker.flush())
        self._record["state"] = "ended"
        limit_s = boot_s() + 30.0
        while True:
            try:
                self._save()
            except OSError:
                if boot_s() > limit_s:
                    raise
                time.sleep(0.5)
            else:
                return

    def _available(self) -> bool:
        return bool(select.select([self._read_fd], [], [], 0)[0])

    def _save(self) -> None:
        self._record["log_dropped_bytes"] = self._log.dropped
        self._folder.write_record(self._record)

    def _nap_ms(self) -> int:
        if self._ended_s is not None:
            return int(TICK_S * 1000)
        moments = [at_s for at_s in (self._deadline_s, self._kill_at_s) if at_s is not None]
        nap_s = min([1.0] + [at_s - boot_s() for at_s in moments])
        return int(max(TICK_S, nap_s) * 1000)

    def _listen_for_signals(self) -> int:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        return read_fd

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self._stop_asked = True


def _environment(spec: Json) -> dict[str, str]:
    env = {"PYTHONUNBUFFERED": "1"}  # a log in which lines wait for a buffer to fill is not live
    env.update(os.environ)
    env.update(spec.get("env", {}))
    env.update(spec.get("secrets", {}))
    env[MARKER] = spec["token"]
    return env


def _become_subreaper() -> bool:
    """Make orphans of the job children of this process; False where that is not possible."""
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def _pipe() -> tuple[int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_fd, False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_fd, F_SETPIPE_SZ, 1 << 20)
    return read_fd, write_fd


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _process_table() -> Iterator[tuple[int, tuple[str, int, int]]]:
    """State, parent and session of every process."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/%s/stat" % name, "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                yield int(name), (fields[0].decode(), int(fields[1]), int(fields[3]))


def _read_json(path: str) -> Json:
    for _ in range(3):
        try:
            with open(path, "rb") as file:
                document = json.loads(file.read() or b"{}")
        except FileNotFoundError:
            break
        except ValueError:
            time.sleep(TICK_S / 4)  # being written; a record's file is used again two records later
        else:
            return document if isinstance(document, dict) else {}
    return {}


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _at(began_s: float, after_s: float | None) -> float | None:
    return None if after_s is None else began_s + float(after_s)


def start(spec: Json) -> int:
    """The verb start."""
    folder = Folder(spec.get("job_dir") or DEFAULT_DIR)
    token = spec["token"]
    os.makedirs(folder.path, mode=0o700, exist_ok=True)
    lock_fd = _lock_for(folder, token)
    if lock_fd is None:
        holder = folder.holder()
        if holder.get("token") == token:
            return _answer({"started": True, "already": True, "pid": holder.get("pid")})
        return _answer({"started": False, "error": "another job runs here"}, EXIT_OTHER_JOB)
    folder.sign(lock_fd, token, 0)  # at once: a second start of this job must not take it for another's
    if folder.record().get("token") == token:
        return _answer({"started": True, "already": True, "pid": folder.record().get("pid")})
    record = _prepare(folder, spec, lock_fd)
    read_fd, ready_fd = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _daemonize(spec, folder, record, lock_fd, ready_fd)
    os.close(ready_fd)
    os.waitpid(child, 0)
    with os.fdopen(read_fd, "rb") as ready:
        answer = json.loads(ready.read() or b"{}")
    if answer:
        return _answer(answer)
    return _answer({"started": False, "error": "the supervisor failed; see the job's log"}, 1)


def _lock_for(folder: Folder, token: str) -> int | None:
    """The lock; None when another supervisor has it. Who merely looks whether it is free has it for a moment only."""
    limit_s = boot_s() + 2.0
    while True:
        lock_fd = folder.lock()
        if lock_fd is not None or folder.holder().get("token") == token or boot_s() > limit_s:
            return lock_fd
        time.sleep(TICK_S)


def _prepare(folder: Folder, spec: Json, lock_fd: int) -> Json:
    """Put the new job's papers in place of the last one's."""
    for name in ("log", "stop.json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder.path, name))
    papers = ("token", "argv", "setup", "cwd", "timeout_s", "grace_s", "meta")  # and no secrets
    folder.write("spec.json", {key: spec.get(key) for key in papers})
    record = {
        "state": "running",
        "token": spec["token"],
        "exit_code": None,
        "signal": None,
        "timed_out": False,
        "stopped": False,
        "failed_in": None,
        "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "began_boot_s": boot_s(),
        "boot_id": _boot_id(),
        "duration_s": None,
        "log_bytes": 0,
        "log_dropped_bytes": 0,
        "pid": None,
    }
    for _ in range(2):
        folder.reserve()
        folder.write_record(record)
    Folder.sign(lock_fd, spec["token"], 0)
    return record


def _daemonize(spec: Json, folder: Folder, record: Json, lock_fd: int, ready_fd: int) -> None:
    """In the child: become a daemon that shares nothing with the connection, supervise, and never return."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _close_all_but(lock_fd, ready_fd)
        os.chdir("/")
        _supervise(spec, folder, record, ready_fd, lock_fd)
        code = 0
    finally:
        os._exit(code)


def _supervise(spec: Json, folder: Folder, record: Json, ready_fd: int, lock_fd: int) -> None:
    try:
        Supervisor(spec, folder, record).run(ready_fd, lock_fd)
    except Exception:
        import traceback

        text = "gpu-runner: the supervisor failed\n" + traceback.format_exc()
        Log(folder.log).write(text.encode(errors="replace"))
        Processes(spec["token"], by_marker=True).end(lambda: None)
        raise


def _close_all_but(*keep: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:  # noqa: PLR2004 - 0, 1 and 2 are /dev/null by now
            with contextlib.suppress(OSError):
                os.close(fd)


def follow(folder: Folder, offset: int) -> int:
    """The verb follow."""
    token = folder.record().get("token")
    if token is None:
        return EXIT_NO_JOB
    poller = select.poll()
    poller.register(1, 0)  # tells only when the reader is gone
    with open(folder.log, "rb", buffering=0, opener=_create) as log:
        log.seek(offset)
        while True:
            status = folder.status()
            over = status["state"] != "running" or status["token"] != token
            if not _copy(log):
                return 0
            if over:
                os.write(2, json.dumps(folder.answer()).encode() + b"\n")
                return 0
            if poller.poll(int(TICK_S * 1000)):
                return 0


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _copy(log: Any) -> bool:
    """Copy what is there to stdout; False when nobody reads any more."""
    while True:
        data = memoryview(log.read(4 * CHUNK_BYTES))
        if not data:
            return True
        while data:
            try:
                data = data[os.write(1, data) :]
            except (BrokenPipeError, ConnectionResetError):
                return False


def stop(folder: Folder, grace_s: float | None) -> int:
    """The verb stop."""
    status = folder.status()
    if status["state"] == "none":
        return _answer(status, EXIT_NO_JOB)
    if grace_s is None:
        grace_s = float(folder.read("spec.json").get("grace_s") or 10.0)
    if status["state"] == "running":
        folder.write("stop.json", {"grace_s": grace_s})
        _stop_supervisor(folder, grace_s)
        status = folder.status()
    if status["state"] == "lost":
        _stop_orphans(folder, grace_s)
    return _answer(folder.answer())


def _stop_supervisor(folder: Folder, grace_s: float) -> None:
    """Ask the supervisor; one that does not end in time is killed, which leaves orphans."""
    limit_s = boot_s() + grace_s + KILL_S + LEFTOVERS_S + 2.0
    asked = False
    while folder.locked():
        pid = folder.holder().get("pid")
        if pid and not asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked = True
        if boot_s() > limit_s and pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(TICK_S)


def _stop_orphans(folder: Folder, grace_s: float) -> None:
    """End what a killed supervisor left behind."""
    record = folder.record()
    session = record.get("pid") if record.get("boot_id") == _boot_id() else None  # pids mean nothing after a reboot
    orphans = Processes(record["token"], by_marker=True, session=session)
    orphans.kill(signal.SIGTERM)
    limit_s = boot_s() + grace_s
    while orphans.alive() and boot_s() < limit_s:
        time.sleep(TICK_S)
    record["left_over"] = orphans.end(lambda: None)
    record["stopped"] = True
    folder.write_record(record)


def _answer(document: Json, code: int = 0) -> int:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
    return code


def _option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments else None


def main(arguments: list[str]) -> int:
    """Run one verb; see the module's text."""
    verb = arguments[0] if arguments else ""
    folder = Folder(_option(arguments, "--job-dir") or DEFAULT_DIR)
    if verb == "start":
        return start(json.loads(sys.stdin.buffer.read()))
    if verb == "status":
        return _answer(folder.answer())
    if verb == "follow":
        return follow(folder, int(_option(arguments, "--offset") or 0))
    if verb == "stop":
        grace = _option(arguments, "--grace")
        return stop(folder, None if grace is None else float(grace))
    sys.stderr.write("usage: supervisor.py start|status|follow|stop [options]\n")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
