"""Signs of life for the machine's guard, and orders to it, through files in its control folder."""

from __future__ import annotations

import itertools
import json
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provisioner.clock import Clock, Deadline
from provisioner.errors import GpuRunnerError, TransientError
from provisioner.remote.link import Drops, Link
from provisioner.remote.session import ConnectionLost, RemoteEnded, RemoteProcess

_FOLDER = "~/.gpu-runner/guard"
_ENTER = f"mkdir -p -m 700 {_FOLDER} && cd {_FOLDER} && "
_BEAT = _ENTER + 'while read -r line; do echo "$line" > beat; done'
_READ = _ENTER + "for name in status.json orders.json; do cat $name 2>/dev/null; echo; echo =; done"
_WRITE = _ENTER + "umask 077 && cat > .orders.$$ && mv -f .orders.$$ orders.json"
_JOIN_S = 5.0
_ORDERING = threading.Lock()


_TAKEN_WITHIN_S = 10.0
_ASK_AGAIN_S = 0.2


class Heartbeat:
    """A thread that tells the guard, again and again, that the controller lives.

    Args:
        link: The connection; a drop is mended through it.
        clock: Waits are made on it.
        interval_s: Time between two beats.
    """

    def __init__(self, link: Link, clock: Clock, interval_s: float) -> None:
        self._link = link
        self._clock = clock
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._process: RemoteProcess | None = None
        self.error: GpuRunnerError | None = None

    def start(self) -> None:
        """Begin; the first beat goes out at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; safe to call again, and before ``start``."""
        self._stop.set()
        if self._process is not None:
            self._process.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def __enter__(self) -> Heartbeat:  # noqa: PYI034 - Self needs Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        counter = itertools.count(1)
        drops = self._link.drops()
        try:
            while not self._stop.is_set():
                try:
                    with self._open() as process:
                        self._beat(process, counter, drops)
                except (ConnectionLost, RemoteEnded) as error:
                    if not self._stop.is_set():
                        drops.wait_after(error)
        except GpuRunnerError as error:
            self.error = error  # the main thread meets the same trouble and reports it

    def _open(self) -> RemoteProcess:
        self._process = self._link.session().open(_shell(_BEAT))
        return self._process

    def _beat(self, process: RemoteProcess, counter: itertools.count[int], drops: Drops) -> None:
        while not self._stop.is_set():
            process.write(b"%d\n" % next(counter))
            self._clock.wait(self._stop, self._interval_s)
            drops.progress()


@dataclass(frozen=True)
class GuardStatus:
    """What the guard last said.

    Attributes:
        state: ``armed`` or ``ending``.
        reason: Why it is ending.
        mode: ``attached`` or ``detached``.
        orders_seq: Number of the last order that it took.
        elapsed_s: Age of the machine.
        hard_in_s: Time until the hard deadline.
        soft_in_s: Time until the soft deadline; None when there is none.
        controller_seen_s: Time since the last beat; None before the first.
        pid: Its process id.
        idle_s: How long nothing has happened.
    """

    state: str
    reason: str = ""
    mode: str = "attached"
    orders_seq: int = 0
    elapsed_s: float = 0.0
    hard_in_s: float = 0.0
    soft_in_s: float | None = None
    controller_seen_s: float | None = None
    pid: int | None = None
    idle_s: float = 0.0

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> GuardStatus:
        """Read the guard's file; what this version does not know is left out."""
        return cls(**{key: value for key, value in document.items() if key in cls.__dataclass_fields__})


def guard_status(link: Link) -> GuardStatus | None:
    """What the guard says; None when it has said nothing yet.

    Args:
        link: The connection to the machine.

    Returns:
        Its last words.

    Raises:
        TransientError: The machine's control folder could not be read.
    """
    status, _ = _read(link)
    return GuardStatus.parse(status) if status else None


def order(link: Link, *, mode: str = "attached", end_in_s: float | None = None, collected: bool = False) -> int:
    """Give the guard a new order.

    Args:
        link: The connection to the machine.
        mode: ``attached``, or ``detached``: expect no heartbeats.
        end_in_s: Soft deadline, so long from when the guard reads it; None leaves it as it is.
        collected: Whether all results are home.

    Returns:
        The order's number; the guard has taken it once its status shows it.

    Raises:
        TransientError: The machine's control folder could not be written.
    """
    with _ORDERING:
        status, last = _read(link)
        seq = 1 + max(int(status.get("orders_seq", 0)), int(last.get("seq", 0)))
        document = {"seq": seq, "mode": mode, "end_in_s": end_in_s, "collected": collected}
        text = json.dumps(document).encode("ascii")
        _run(link, _WRITE, stdin=text)
    return seq


def command(link: Link, *, mode: str = "attached", end_in_s: float | None = None) -> None:
    """Give the guard a new order, and wait until it has taken it: an order that was only sent protects nobody.

    Args:
        link: The connection to the machine.
        mode: As in ``order``.
        end_in_s: As in ``order``.

    Raises:
        TransientError: The guard did not take it in time.
    """
    seq = order(link, mode=mode, end_in_s=end_in_s)
    deadline = Deadline.after(link.clock, _TAKEN_WITHIN_S)
    while not deadline.passed():
        status = guard_status(link)
        if status is not None and status.orders_seq >= seq:
            return
        link.pause(_ASK_AGAIN_S)
    raise TransientError("the guard on the machine did not take an order in time")


def _read(link: Link) -> tuple[dict[str, Any], dict[str, Any]]:
    """The guard's status and the last order; each empty when there is none."""
    status, orders, _ = _run(link, _READ).split(b"\n=\n")
    return _document(status), _document(orders)


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text or b"{}")
    except ValueError:
        document = {}
    return document if isinstance(document, dict) else {}


def _run(link: Link, script: str, *, stdin: bytes = b"") -> bytes:
    result = link.call(lambda session: session.run(_shell(script), stdin=stdin))
    if result.exit_status != 0:
        details = result.stderr.decode(errors="replace").strip()
        raise TransientError("the machine's control folder cannot be used", details=details)
    return result.stdout


def _shell(script: str) -> str:
    """The script, whatever the login shell is."""
    return f"exec sh -c {shlex.quote(script)}"
