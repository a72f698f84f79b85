"""A request to end early: soft, then hard, by whom, and who is told."""

from __future__ import annotations

import threading

import pytest

from provisioner.cancel import Cancel, CancelReason
from provisioner.errors import CancelledError, ExitCode

CTRL_C = CancelReason("interrupted (Ctrl-C)", ExitCode.INTERRUPTED)
TERM = CancelReason("terminated (SIGTERM)", ExitCode.TERMINATED)


def test_nobody_asked() -> None:
    cancel = Cancel()
    cancel.check()
    assert not cancel.soft.is_set()
    assert not cancel.hard.is_set()
    assert cancel.error().exit_code is ExitCode.TERMINATED


def test_soft_then_hard_keeps_the_first_reason() -> None:
    cancel = Cancel()
    cancel.request(CTRL_C)
    assert (cancel.soft.is_set(), cancel.hard.is_set()) == (True, False)
    cancel.request(TERM, hard=True)
    assert cancel.hard.is_set()
    with pytest.raises(CancelledError, match="Ctrl-C") as caught:
        cancel.check()
    assert caught.value.exit_code is ExitCode.INTERRUPTED


def test_hard_at_once_is_soft_too_and_calls_both_in_order() -> None:
    cancel = Cancel()
    called: list[str] = []
    cancel.when_hard(lambda: called.append("hard"))
    cancel.when_soft(lambda: called.append("soft"))
    cancel.request(TERM, hard=True)
    assert cancel.soft.is_set()
    assert called == ["soft", "hard"]


def test_each_action_is_called_once() -> None:
    cancel = Cancel()
    called: list[str] = []
    cancel.when_soft(lambda: called.append("soft"))
    cancel.when_hard(lambda: called.append("hard"))
    for hard in (False, False, True, True, False):
        cancel.request(CTRL_C, hard=hard)
    assert called == ["soft", "hard"]


def test_who_comes_late_is_called_at_once() -> None:
    cancel = Cancel()
    called: list[str] = []
    cancel.request(CTRL_C)
    cancel.when_soft(lambda: called.append("soft"))
    cancel.when_hard(lambda: called.append("hard"))
    assert called == ["soft"]
    cancel.request(CTRL_C, hard=True)
    assert called == ["soft", "hard"]


def test_an_action_may_make_it_harder() -> None:
    cancel = Cancel()
    cancel.when_soft(lambda: cancel.request(TERM, hard=True))
    cancel.request(CTRL_C)
    assert cancel.hard.is_set()
    assert cancel.reason == CTRL_C


def test_many_threads_at_once_call_each_action_once() -> None:
    cancel = Cancel()
    called: list[int] = []
    for number in range(50):
        cancel.when_soft(lambda number=number: called.append(number))  # type: ignore[misc]  # bound now
    threads = [threading.Thread(target=cancel.request, args=(CTRL_C,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(called) == [*range(50)]
