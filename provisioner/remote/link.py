"""A connection that comes back: sessions to one machine, reconnected after drops, for all threads together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from provisioner.clock import Clock, Deadline
from provisioner.errors import CancelledError, GpuRunnerError, MachineLostError, TransientError
from provisioner.models import Endpoint
from provisioner.remote.session import ConnectionLost, Flag, KeepAlive, Session

T = TypeVar("T")

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_SLICE_S = 0.25


@dataclass(frozen=True)
class _Either:
    first: Flag
    second: Flag | None

    def is_set(self) -> bool:
        return self.first.is_set() or (self.second is not None and self.second.is_set())


class Link:
    """Hands out live sessions to one machine.

    Args:
        endpoint: The machine.
        private_key: OpenSSH PEM that it lets in.
        clock: Waits are made on it.
        cancel: Ends connecting and waiting soon after it is set; running commands go on (``abort`` ends those).
        reconnect_for_s: The machine counts as lost after so long without a connection.
        connect_timeout_s: For one try.
        keep_alive: How a dead peer is found.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        private_key: str,
        *,
        clock: Clock,
        cancel: Flag | None = None,
        reconnect_for_s: float = 300.0,
        connect_timeout_s: float = 15.0,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self._private_key = private_key
        self._reconnect_for_s = reconnect_for_s
        self._connect_timeout_s = connect_timeout_s
        self._keep_alive = keep_alive
        self._aborted = threading.Event()
        self._stop = _Either(self._aborted, cancel)
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._error: GpuRunnerError | None = None

    def session(self, within_s: float | None = None) -> Session:
        """The live session; connects, or reconnects, if there is none.

        Args:
            within_s: For how long to try; None for the link's own limit. A machine that boots gets longer.

        Returns:
            A session that was alive a moment ago.

        Raises:
            MachineLostError: No connection within the limit; every later call raises it at once.
            LoginRefusedError: Our key is not let in.
            CancelledError: Cancelled or aborted.
        """
        current = self._session
        if current is not None and current.alive:
            return current
        with self._lock:
            self._raise_error()
            if self._session is None or not self._session.alive:
                self._session = self._reconnect(within_s or self._reconnect_for_s)
            return self._session

    def call(self, function: Callable[[Session], T]) -> T:
        """Call an idempotent function with a live session, again after each drop.

        Args:
            function: Must be safe to repeat.

        Returns:
            What it returned.

        Raises:
            MachineLostError: It kept dropping for as long as the link tries.
        """
        drops = self.drops()
        while True:
            session = self.session()
            try:
                return function(session)
            except ConnectionLost as error:
                drops.wait_after(error)

    def drops(self) -> Drops:
        """A counter of drops for a caller that resumes its work by itself instead of repeating it."""
        return Drops(self, self._reconnect_for_s)

    def pause(self, seconds: float) -> None:
        """Wait, ended early by a cancel.

        Args:
            seconds: For how long.

        Raises:
            CancelledError: Cancelled or aborted.
        """
        limit = Deadline.after(self.clock, seconds)
        while not limit.passed():
            self._check()
            self.clock.wait(self._aborted, min(_SLICE_S, limit.remaining_s()))
        self._check()

    def abort(self, error: GpuRunnerError | None = None) -> None:
        """End the session and every wait at once; every call, blocked or later, raises.

        Args:
            error: What they raise; None for a CancelledError.
        """
        self._error = self._error or error or CancelledError("the connection was given up")
        self._aborted.set()
        if self._session is not None:
            self._session.abort(self._error.brief)

    def close(self) -> None:
        """End the session in peace; the link is of no further use."""
        self.abort()

    def _reconnect(self, within_s: float) -> Session:
        limit = Deadline.after(self.clock, within_s)
        wait_s = _FIRST_WAIT_S
        while True:
            self._check()
            try:
                return self._connect(limit)
            except CancelledError:
                self._check()  # tells why, where an abort gave a reason
                raise
            except TransientError as error:
                if limit.remaining_s() <= wait_s:
                    self._error = MachineLostError(
                        f"no connection to the machine for {within_s:.0f} s",
                        details=f"{error.brief}: {error.details}",
                        resolution="see whether it is still there: gpu-runner list",
                    )
                    raise self._error from error
            self.pause(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _connect(self, limit: Deadline) -> Session:
        session = Session.connect(
            self.endpoint,
            self._private_key,
            clock=self.clock,
            timeout_s=max(0.5, min(self._connect_timeout_s, limit.remaining_s())),
            cancel=self._stop,
            keep_alive=self._keep_alive,
        )
        if self._aborted.is_set():  # abort() came too late to see it
            session.close()
        return session

    def _check(self) -> None:
        self._raise_error()
        if self._stop.is_set():
            raise CancelledError("cancelled while waiting for the machine")

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class Drops:
    """Bounds how long a connection may drop again and again without any progress in between.

    Made by ``Link.drops``.
    """

    def __init__(self, link: Link, limit_s: float) -> None:
        self._link = link
        self._limit_s = limit_s
        self.progress()

    def progress(self) -> None:
        """Something was achieved: count from the start again."""
        self._limit: Deadline | None = None
        self._wait_s = _FIRST_WAIT_S

    def wait_after(self, error: GpuRunnerError) -> None:
        """Wait before the next try, longer each time.

        Args:
            error: The drop, or what else ended the try.

        Raises:
            MachineLostError: It has been dropping for too long.
            CancelledError: Cancelled or aborted.
        """
        self._limit = self._limit or Deadline.after(self._link.clock, self._limit_s)
        if self._limit.passed():
            raise MachineLostError(
                "the connection keeps dropping", details=f"{error.brief}: {error.details}"
            ) from error
        self._link.pause(self._wait_s)
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
