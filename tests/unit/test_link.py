"""How a link waits for a machine, without waiting."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from provisioner.errors import CancelledError, MachineLostError, PreemptedError
from provisioner.models import Endpoint
from provisioner.remote.keys import KeyPair, generate_keypair
from provisioner.remote.link import Link
from provisioner.remote.session import ConnectionLost, Session
from tests.fakes import FakeClock


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    return generate_keypair()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound and not listening: refuses, and nobody else gets it
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def make(clock: FakeClock, keys: KeyPair, port: int, cancel: threading.Event | None = None) -> Link:
    endpoint = Endpoint("127.0.0.1", port, "me", keys.public_key_line)
    return Link(endpoint, keys.private_key_pem, clock=clock, cancel=cancel, reconnect_for_s=120)


def test_a_machine_that_never_answers_is_lost_after_the_limit(keys: KeyPair, closed_port: int) -> None:
    clock = FakeClock()
    link = make(clock, keys, closed_port)
    began_s = clock.elapsed_s()
    with pytest.raises(MachineLostError, match="120 s") as caught:
        link.session()
    assert "refused" in caught.value.details
    assert 100 <= clock.elapsed_s() - began_s <= 121


def test_it_is_lost_for_everybody_from_then_on(keys: KeyPair, closed_port: int) -> None:
    clock = FakeClock()
    link = make(clock, keys, closed_port)
    with pytest.raises(MachineLostError):
        link.session()
    before_s = clock.elapsed_s()
    with pytest.raises(MachineLostError):
        link.call(lambda session: session.run("true"))
    assert clock.elapsed_s() == before_s


def test_a_booting_machine_may_be_given_its_own_limit(keys: KeyPair, closed_port: int) -> None:
    clock = FakeClock()
    with pytest.raises(MachineLostError, match="900 s"):
        make(clock, keys, closed_port).session(within_s=900)
    assert clock.elapsed_s() > 1800


def test_a_cancel_ends_the_waiting(keys: KeyPair, closed_port: int) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        make(FakeClock(), keys, closed_port, cancel).session()


def test_an_abort_says_why_to_everybody(keys: KeyPair, closed_port: int) -> None:
    clock = FakeClock(auto=False)
    link = make(clock, keys, closed_port)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            link.session()
        except PreemptedError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    reason = PreemptedError("the cloud took it back")
    link.abort(reason)
    for thread in threads:
        thread.join(10)
    assert errors == [reason] * 3
    with pytest.raises(PreemptedError):
        link.pause(1)


def test_drops_without_progress_come_to_an_end_and_progress_resets_them(keys: KeyPair) -> None:
    clock = FakeClock()
    drops = make(clock, keys, 1).drops()

    def drop_until_given_up() -> int:
        for count in range(1000):
            try:
                drops.wait_after(ConnectionLost("dropped"))
            except MachineLostError:
                return count
        return 1000

    assert drop_until_given_up() < 30
    drops.progress()
    assert 10 < drop_until_given_up() < 30


def test_call_does_not_repeat_other_errors(keys: KeyPair, closed_port: int) -> None:
    link = make(FakeClock(), keys, closed_port)

    def never(_: Session) -> None:
        raise AssertionError

    with pytest.raises(MachineLostError):
        link.call(never)
