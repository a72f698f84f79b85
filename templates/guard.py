"""The guard: the watchdog on a machine that ends it when its lease is over, whatever became of the controller.

One file, standard library only, Python 3.8 and later, Linux. How a machine is *ended* is injected: a local machine
kills its processes and removes its folder, a cloud machine powers off. Every duration is measured on CLOCK_BOOTTIME,
which nobody can set and which counts suspended time.

Three layers, each usable without the next: ``advance`` and ``decide`` are pure; ``Guard`` reads files and writes
``status.json``; ``Guard.run`` loops.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
import time
from typing import Any, Callable, Dict, NamedTuple

_CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
ATTACHED = "attached"
DETACHED = "detached"
END = "end"
FINISH = "finish"
ARMED = "armed"
ENDING = "ending"
JOB_GRACE_S = 3.0
_LONGEST_PAUSE_S = 0.5
_SHORTEST_PAUSE_S = 0.02
_STATUS_EVERY_S = 1.0
_LARGEST_FILE_BYTES = 1 << 20


class Limits(NamedTuple):
    """What the lease says; durations in seconds.

    Attributes:
        hard_s: Hard deadline, from the machine's creation.
        fuse_s: End when no controller ever checked in, from the machine's creation.
        heartbeat_timeout_s: The controller counts as lost after this long without a sign.
        idle_timeout_s: End after this long without job, session or results that wait.
        on_controller_loss: ``end`` or ``finish``.
    """

    hard_s: float
    fuse_s: float
    heartbeat_timeout_s: float
    idle_timeout_s: float
    on_controller_loss: str = END


class Order(NamedTuple):
    """One order of the controller; see ``read_order``."""

    seq: int
    mode: str | None = None
    end_in_s: float | None = None
    collected: bool = False


class Job(NamedTuple):
    """What is known of the job.

    Attributes:
        state: ``none``, ``running``, ``ended`` or ``lost`` (its supervisor is gone without an exit record).
        token: Which job it is.
    """

    state: str = "none"
    token: str = ""


class Readings(NamedTuple):
    """What one look around gave.

    Attributes:
        beat: Identity of the heartbeat file, as (mtime in ns, size, inode); None when there is none.
        order: The controller's latest order.
        job: The job.
        sessions: Open SSH connections.
        asked: Somebody on the machine asked for the end; the reason, or empty.
    """

    beat: tuple[int, int, int] | None = None
    order: Order | None = None
    job: Job = Job()
    sessions: int = 0
    asked: str = ""


class State(NamedTuple):
    """What the guard remembers; moments are seconds on its clock.

    Attributes:
        limits: The lease's limits.
        created_s: When the machine was made.
        beat: The last heartbeat's identity.
        seen_s: When a controller last gave a sign; None for never.
        seq: The last order acted upon; None for none.
        mode: Whether heartbeats are expected.
        soft_at_s: Soft deadline; None for none.
        collected: Token of the job whose results are home; None for none.
        busy_s: When the machine was last not idle.
    """

    limits: Limits
    created_s: float
    beat: tuple[int, int, int] | None = None
    seen_s: float | None = None
    seq: int | None = None
    mode: str = ATTACHED
    soft_at_s: float | None = None
    collected: str | None = None
    busy_s: float = 0.0

    @property
    def hard_at_s(self) -> float:
        """The moment of the hard deadline."""
        return self.created_s + self.limits.hard_s


def boottime_s() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(_CLOCK_ID)


def first_state(limits: Limits, created_s: float, now_s: float) -> State:
    """What a guard knows when it starts.

    Args:
        limits: The lease's limits.
        created_s: When the machine was made.
        now_s: Now; idleness counts from here.

    Returns:
        The state.
    """
    return State(limits=limits, created_s=created_s, busy_s=now_s)


def advance(state: State, readings: Readings, now_s: float) -> State:
    """Take in what was read: heartbeat, order, business.

    Args:
        state: What was known.
        readings: What was read.
        now_s: When.

    Returns:
        What is known now.
    """
    if readings.beat is not None and readings.beat != state.beat:
        state = state._replace(beat=readings.beat, seen_s=now_s, busy_s=now_s)
    if readings.order is not None and readings.order.seq != state.seq:
        state = _obey(state, readings.order, readings.job, now_s)
    if readings.job.state == "running":
        state = state._replace(collected=None, busy_s=now_s)
    elif readings.sessions > 0 or _uncollected(state, readings.job):
        state = state._replace(busy_s=now_s)
    return state


def _obey(state: State, order: Order, job: Job, now_s: float) -> State:
    state = state._replace(seq=order.seq, seen_s=now_s, busy_s=now_s, mode=order.mode or state.mode)
    if order.end_in_s is not None:
        state = state._replace(soft_at_s=min(now_s + order.end_in_s, state.hard_at_s))
    if order.collected and job.state != "running":
        state = state._replace(collected=job.token)
    return state


def _uncollected(state: State, job: Job) -> bool:
    return job.state in ("ended", "lost") and state.collected != job.token


def decide(state: State, readings: Readings, now_s: float) -> str | None:
    """Whether the machine must end now.

    Args:
        state: What is known, ``readings`` taken in already.
        readings: What was read.
        now_s: Now.

    Returns:
        The reason, for people; None to go on.
    """
    if now_s >= state.hard_at_s:
        return f"hard deadline: the lease is over after {state.limits.hard_s:g} s"
    if state.soft_at_s is not None and now_s >= state.soft_at_s:
        return "soft deadline: the time that the controller gave is over"
    if readings.asked:
        return f"asked to end: {readings.asked}"
    return _forsaken(state, now_s)


def _forsaken(state: State, now_s: float) -> str | None:
    """Whether nobody cares for the machine any more."""
    limits = state.limits
    if state.seen_s is None and now_s - state.created_s >= limits.fuse_s:
        return f"fuse: no controller checked in within {limits.fuse_s:g} s"
    if limits.on_controller_loss != FINISH and _controller_lost(state, now_s):
        return f"controller lost: no heartbeat for {limits.heartbeat_timeout_s:g} s"
    if now_s - state.busy_s >= limits.idle_timeout_s:
        return f"idle: no job, session or waiting results for {limits.idle_timeout_s:g} s"
    return None


def _controller_lost(state: State, now_s: float) -> bool:
    if state.mode != ATTACHED or state.seen_s is None:
        return False
    return now_s - state.seen_s >= state.limits.heartbeat_timeout_s


def next_look_s(state: State, now_s: float) -> float:
    """How long the guard may pause without missing a deadline.

    Args:
        state: What is known.
        now_s: Now.

    Returns:
        Seconds.
    """
    limits = state.limits
    moments = [state.hard_at_s, state.busy_s + limits.idle_timeout_s]
    if state.soft_at_s is not None:
        moments.append(state.soft_at_s)
    if state.seen_s is None:
        moments.append(state.created_s + limits.fuse_s)
    elif state.mode == ATTACHED:
        moments.append(state.seen_s + limits.heartbeat_timeout_s)
    ahead = [moment - now_s for moment in moments if moment > now_s]
    return max(_SHORTEST_PAUSE_S, min([_LONGEST_PAUSE_S, *ahead]))


def read_order(path: str) -> Order | None:
    """Read the controller's latest order.

    Args:
        path: Of ``orders.json``.

    Returns:
        The order; None when there is none, or none that can be understood.
    """
    data = _read_json(path)
    seq = data.get("seq")
    if not isinstance(seq, int) or isinstance(seq, bool):
        return None
    mode, end_in_s = data.get("mode"), data.get("end_in_s")
    return Order(
        seq=seq,
        mode=mode if mode in (ATTACHED, DETACHED) else None,
        end_in_s=_duration(end_in_s),
        collected=data.get("collected") is True,
    )


def _duration(value: object) -> float | None:
    """A duration from free-form JSON; None for anything else, so that a broken order moves no deadline."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def read_job(job_dir: str) -> Job:
    """Read the supervisor's record of the job.

    The record tells what became of the job. Only one that says ``running`` is held against the lock, which a living
    supervisor holds: the lock is never tried while a new supervisor may be taking it.

    Args:
        job_dir: The job folder.

    Returns:
        The job.
    """
    record = _read_json(os.path.join(job_dir, "status.json"))
    token = record.get("token")
    token = token if isinstance(token, str) else ""
    state = record.get("state")
    if state == "running":
        return Job("running" if _is_locked(os.path.join(job_dir, "lock")) else "lost", token)
    return Job(state, token) if state in ("ended", "lost") else Job()


def _is_locked(path: str) -> bool:
    """Whether somebody holds the flock; a lock that cannot be asked about counts as held (unknown is not "no")."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_beat(path: str) -> tuple[int, int, int] | None:
    """The identity of the heartbeat file, which changes with each beat; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def count_sessions(port: int, address: str | None = None) -> int:
    """Count the open TCP connections to an SSH server of this machine.

    Args:
        port: Its port.
        address: Its IPv4 address; None for any address, IPv6 too.

    Returns:
        How many; none when the kernel's tables cannot be read.
    """
    tables = ("/proc/net/tcp",) if address else ("/proc/net/tcp", "/proc/net/tcp6")
    return sum(_established(table, port, address) for table in tables)


def _established(table: str, port: int, address: str | None) -> int:
    wanted = None if address is None else _kernel_address(address)
    count = 0
    try:
        with open(table, encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                fields = line.split()
                host, _, hex_port = fields[1].rpartition(":")
                count += fields[3] == "01" and int(hex_port, 16) == port and wanted in (None, host)
    except OSError:
        return 0
    return count


def _kernel_address(address: str) -> str:
    """An IPv4 address as the kernel's tables print it: the network-order word in host order."""
    word = bytes(int(part) for part in address.split("."))
    return f"{int.from_bytes(word, sys.byteorder):08X}"


def _read_json(path: str) -> Dict[str, Any]:
    """A JSON object from a file that others write; anything else reads as empty."""
    try:
        with open(path, "rb") as stream:
            data = json.loads(stream.read(_LARGEST_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def write_json(path: str, data: dict[str, Any]) -> None:
    """Replace a JSON file in one step.

    Args:
        path: The file.
        data: What to write.

    Raises:
        OSError: If it cannot be written; the old file stays.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(data, stream)
        os.replace(temporary, path)
    except OSError:
        _discard(temporary)
        raise


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            _say(f"cannot remove {path}: {error}")


def _say(text: str) -> None:
    """Write to the machine's console; a full disk or closed stream must not stop the guard."""
    try:
        os.write(2, f"guard: {text}\n".encode("utf-8", "replace"))
    except OSError:
        return


def stop_job(home: str, grace_s: float = JOB_GRACE_S) -> None:
    """Ask the supervisor to end the job (SIGTERM, then SIGKILL); one that does not answer is the ending's to kill.

    Args:
        home: The login's home folder.
        grace_s: Time between the two signals.
    """
    supervisor = os.path.join(home, ".gpu-runner", "bin", "supervisor.py")
    if not os.path.exists(supervisor):
        return
    command = [sys.executable or "python3", supervisor, "stop", "--grace", f"{grace_s:g}"]
    environment = {**os.environ, "HOME": home}
    try:
        subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=grace_s + 2.0,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"the job was not stopped in time: {error}")


class Guard:
    """Looks around, remembers, and ends the machine when it must.

    Args:
        home: The login's home folder; the control files are below it.
        limits: The lease's limits.
        created_s: When the machine was made, on this clock.
        ending: Called once with the reason; ends the machine.
        sessions: Counts the open SSH connections.
        clock: Gives seconds on a clock that nobody can set.

    Attributes:
        asked: Set it to a reason to ask for the end.
        state: What is known.
    """

    def __init__(
        self,
        home: str,
        limits: Limits,
        created_s: float,
        *,
        ending: Callable[[str], None],
        sessions: Callable[[], int],
        clock: Callable[[], float] = boottime_s,
    ) -> None:
        self.asked = ""
        self._home = home
        self._ending = ending
        self._sessions = sessions
        self._clock = clock
        self._control = os.path.join(home, ".gpu-runner", "guard")
        self._job_dir = os.path.join(home, ".gpu-runner", "job")
        self._written: tuple[Any, ...] = ()
        self._written_s = -math.inf
        self._complained = False
        self.state = first_state(limits, created_s, clock())

    def look(self) -> Readings:
        """Look around once."""
        return Readings(
            beat=read_beat(os.path.join(self._control, "beat")),
            order=read_order(os.path.join(self._control, "orders.json")),
            job=read_job(self._job_dir),
            sessions=self._sessions(),
            asked=self.asked,
        )

    def step(self) -> str | None:
        """Look around, remember, tell, decide.

        Returns:
            Why the machine must end; None to go on.
        """
        readings = self.look()
        now_s = self._clock()
        self.state = advance(self.state, readings, now_s)
        reason = decide(self.state, readings, now_s)
        self._tell(ENDING if reason else ARMED, reason or "", now_s)
        return reason

    def pause_s(self) -> float:
        """How long to pause until the next step."""
        return next_look_s(self.state, self._clock())

    def end(self, reason: str) -> None:
        """End the machine: the job first, with a short grace, then everything.

        Args:
            reason: Why.
        """
        _say(f"ending the machine: {reason}")
        if read_job(self._job_dir).state == "running":
            stop_job(self._home)
        self._ending(reason)

    def run(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Watch until the machine must end, and end it.

        Args:
            pause: Waits so many seconds, or less.
        """
        reason = self.step()
        while reason is None:
            pause(self.pause_s())
            reason = self.step()
        self.end(reason)

    def _tell(self, word: str, reason: str, now_s: float) -> None:
        """Write ``status.json``, when it says something new or is a second old; a full disk stops nothing."""
        state = self.state
        news = (word, reason, state.mode, state.seq, state.soft_at_s)
        if news == self._written and now_s - self._written_s < _STATUS_EVERY_S:
            return
        try:
            os.makedirs(self._control, mode=0o700, exist_ok=True)
            write_json(os.path.join(self._control, "status.json"), self._status(word, reason, now_s))
        except OSError as error:
            if not self._complained:
                _say(f"cannot write the status: {error}")
            self._complained = True
            return
        self._complained = False
        self._written, self._written_s = news, now_s

    def _status(self, word: str, reason: str, now_s: float) -> dict[str, Any]:
        state = self.state
        return {
            "state": word,
            "reason": reason,
            "mode": state.mode,
            "orders_seq": state.seq if state.seq is not None else 0,
            "elapsed_s": round(now_s - state.created_s, 3),
            "hard_in_s": round(state.hard_at_s - now_s, 3),
            "soft_in_s": None if state.soft_at_s is None else round(state.soft_at_s - now_s, 3),
            "controller_seen_s": None if state.seen_s is None else round(now_s - state.seen_s, 3),
            "pid": os.getpid(),
            "idle_s": round(now_s - state.busy_s, 3),
        }
