"""Signals become a request to cancel: nothing is ever raised inside a call that is under way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from provisioner.cancel import Cancel, CancelReason
from provisioner.errors import ExitCode

_INTERRUPTED = CancelReason("interrupted (Ctrl-C)", ExitCode.INTERRUPTED)
_TERMINATED = CancelReason("terminated (SIGTERM)", ExitCode.TERMINATED)
_HUNG_UP = CancelReason("the terminal went away (SIGHUP)", ExitCode.TERMINATED)


class SignalWatch:
    """Turns SIGINT, SIGTERM and SIGHUP into requests to cancel.

    The handlers do nothing; the numbers arrive over a wake-up pipe (signal.set_wakeup_fd) in a thread of their own,
    because setting an event inside a handler can deadlock with the very wait that it interrupts.

    Args:
        cancel: What to request.
        interactive: Whether a person sits at a terminal; elsewhere every signal goes straight to the release.
        say: Called with a line for the user.
    """

    def __init__(self, cancel: Cancel, *, interactive: bool, say: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._interactive = interactive
        self._say = say

    def install(self) -> None:
        """Begin; in the main thread only. A signal that is ignored (nohup) stays ignored."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _ignore)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._loop, args=(reader,), name="signals", daemon=True).start()

    def _loop(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                self.receive(number)

    def receive(self, number: int) -> None:
        """React to one signal.

        Args:
            number: Its number.
        """
        if number == signal.SIGINT and self._interactive and not self._cancel.soft.is_set():
            self._say("stopping: artifacts come home first (30 s at most); press Ctrl-C again to release at once")
            self._cancel.request(_INTERRUPTED)
        elif number == signal.SIGINT:
            self._cancel.request(_INTERRUPTED, hard=True)
        elif number in {signal.SIGTERM, signal.SIGHUP}:
            self._cancel.request(_TERMINATED if number == signal.SIGTERM else _HUNG_UP, hard=True)


def _ignore(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the wake-up pipe to work; the thread does the rest."""
