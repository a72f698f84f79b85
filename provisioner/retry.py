"""The one retry policy: single idempotent calls, transient errors only.

The walk over offers is a loop, not a retry; the poll for a state is a wait, not a retry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity

from provisioner.clock import Clock
from provisioner.errors import InDoubtError, TransientError

T = TypeVar("T")


def call(
    function: Callable[[], T],
    *,
    clock: Clock,
    cancel: threading.Event | None = None,
    attempts: int = 5,
    first_wait_s: float = 0.5,
    longest_wait_s: float = 20.0,
) -> T:
    """Call a function, and again with growing random waits while it raises TransientError.

    An InDoubtError is never retried here: what a lost answer made must be looked up first.

    Args:
        function: One idempotent call without arguments.
        clock: Waits are made on it.
        cancel: Ends the waiting at once; the last error is raised then.
        attempts: Calls at the most.
        first_wait_s: Upper bound of the first wait, in seconds; doubles each time.
        longest_wait_s: Upper bound of every wait, in seconds.

    Returns:
        What the function returned.

    Raises:
        TransientError: The last one, when all attempts failed.
    """
    enough = tenacity.stop_after_attempt(attempts)
    stop = enough if cancel is None else tenacity.stop_any(enough, tenacity.stop_when_event_set(cancel))
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, TransientError) and not isinstance(e, InDoubtError)),
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=first_wait_s, max=longest_wait_s),
        sleep=lambda seconds: _pause(clock, cancel, seconds),
        reraise=True,
    )(function)


def _pause(clock: Clock, cancel: threading.Event | None, seconds: float) -> None:
    if cancel is None:
        clock.sleep(seconds)
    else:
        clock.wait(cancel, seconds)
