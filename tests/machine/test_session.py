"""One SSH connection to a real server, also when it breaks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from provisioner.clock import SystemClock
from provisioner.errors import CancelledError, ConfigError, GpuRunnerError, TransientError
from provisioner.models import Endpoint
from provisioner.remote.keys import generate_keypair
from provisioner.remote.session import (
    ConnectionLost,
    HostKeyError,
    KeepAlive,
    LoginRefusedError,
    RemoteEnded,
    RemoteProcess,
    RemoteTimeout,
    Session,
)
from tests.proxy import Proxy, proxy_to
from tests.sshd import PrivateSshd, private_sshd

CLOCK = SystemClock()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def session(sshd: PrivateSshd) -> Iterator[Session]:
    with Session.connect(sshd.endpoint, sshd.private_key, clock=CLOCK) as made:
        yield made


@pytest.fixture
def proxy(sshd: PrivateSshd) -> Iterator[Proxy]:
    with proxy_to(sshd.port) as made:
        yield made


def connect(sshd: PrivateSshd, proxy: Proxy, silence_s: float = 60.0) -> Session:
    endpoint = replace(sshd.endpoint, port=proxy.port)
    return Session.connect(endpoint, sshd.private_key, clock=CLOCK, keep_alive=KeepAlive(0.2, silence_s))


def test_a_command_its_input_its_output_and_its_exit_code(session: Session) -> None:
    result = session.run("cat; echo err >&2; exit 3", stdin=b"in\x00put")
    assert (result.exit_status, result.stdout, result.stderr) == (3, b"in\x00put", b"err\n")


def test_a_fresh_key_pair_opens_a_session(sshd: PrivateSshd) -> None:
    pair = generate_keypair()
    assert "PRIVATE" not in repr(pair)
    with (sshd.folder / "authorized_keys").open("a") as file:
        file.write(pair.public_key_line + "\n")
    with Session.connect(sshd.endpoint, pair.private_key_pem, clock=CLOCK) as session:
        assert session.run("true").exit_status == 0


def test_the_cipher_is_gcm_and_keys_are_not_changed_on_the_way(session: Session) -> None:
    transport = session._transport
    assert "gcm" in transport.local_cipher
    assert transport.packetizer.REKEY_BYTES > 1 << 38


def test_much_both_ways_at_once(session: Session) -> None:
    data = bytes(range(256)) * 40000
    assert session.run("cat", stdin=data).stdout == data


def test_much_error_output_does_not_block(session: Session) -> None:
    result = session.run("head -c 9000000 /dev/zero >&2; cat | wc -c", stdin=b"x" * 5_000_000)
    assert result.stdout.strip() == b"5000000"
    assert len(result.stderr) == 64 << 10


def test_input_that_nobody_reads_is_no_error_of_a_short_command(session: Session) -> None:
    assert session.run("exit 4", stdin=b"x" * 8_000_000).exit_status == 4


def test_a_signal_is_told_from_a_lost_connection(session: Session) -> None:
    assert session.run("kill -9 $$").exit_status == -1
    assert session.alive


def test_too_much_output_is_refused(session: Session) -> None:
    with pytest.raises(GpuRunnerError, match="more than 1000 bytes"):
        session.run("yes", limit_bytes=1000)
    assert session.run("true").exit_status == 0


def test_a_command_that_takes_too_long(session: Session) -> None:
    with pytest.raises(RemoteTimeout):
        session.run("sleep 10", timeout_s=0.3)
    with session.open("sleep 10") as process:
        with pytest.raises(RemoteTimeout):
            process.read(timeout_s=0.2)
        with pytest.raises(RemoteTimeout):
            process.exit_status(timeout_s=0.2)


def test_a_process_with_open_streams(session: Session) -> None:
    with session.open("while read line; do echo got $line; done; echo bye >&2; exit 2") as process:
        process.write(b"one\n")
        assert process.read() == b"got one\n"
        process.write(b"two\n")
        assert process.read(4) == b"got "
        assert process.read() == b"two\n"
        process.close_stdin()
        assert process.read() == b""
        assert process.exit_status(5) == 2
        assert process.stderr_tail == b"bye\n"


def test_writing_to_a_process_that_ended(session: Session) -> None:
    with session.open("exit 6") as process:
        with pytest.raises(RemoteEnded):
            process.write(b"x" * 50_000_000)
        assert process.exit_status(5) == 6


def test_many_threads_use_one_session(session: Session) -> None:
    answers: dict[int, bytes] = {}

    def ask(number: int) -> None:
        answers[number] = session.run(f"sleep 0.1; echo {number}").stdout

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: b"%d\n" % number for number in range(8)}


def test_nobody_there_is_transient(sshd: PrivateSshd) -> None:
    with pytest.raises(ConnectionLost, match="cannot reach") as caught:
        Session.connect(replace(sshd.endpoint, port=1), sshd.private_key, clock=CLOCK)
    assert isinstance(caught.value, TransientError)
    assert "refused" in caught.value.details


def test_another_host_key_is_never_accepted(sshd: PrivateSshd) -> None:
    other = replace(sshd.endpoint, host_public_key=generate_keypair().public_key_line)
    with pytest.raises(HostKeyError, match="another machine"):
        Session.connect(other, sshd.private_key, clock=CLOCK)


def test_a_server_without_the_pinned_type_of_key(sshd: PrivateSshd) -> None:
    with pytest.raises(HostKeyError, match="another machine"):
        Session.connect(
            replace(sshd.endpoint, host_public_key="ecdsa-sha2-nistp256 AAAA"), sshd.private_key, clock=CLOCK
        )
    with pytest.raises(ConfigError, match="pin"):
        Session.connect(replace(sshd.endpoint, host_public_key="rubbish AAAA"), sshd.private_key, clock=CLOCK)


def test_a_key_that_is_not_let_in(sshd: PrivateSshd) -> None:
    with pytest.raises(LoginRefusedError):
        Session.connect(sshd.endpoint, generate_keypair().private_key_pem, clock=CLOCK)
    with pytest.raises(ConfigError, match="private key"):
        Session.connect(sshd.endpoint, "rubbish", clock=CLOCK)


def test_a_cancel_ends_a_connection_attempt(sshd: PrivateSshd, proxy: Proxy) -> None:
    proxy.stall()
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(CancelledError):
        Session.connect(replace(sshd.endpoint, port=proxy.port), sshd.private_key, clock=CLOCK, cancel=cancel)
    assert time.monotonic() - began < 2


def test_a_server_that_says_nothing_is_given_up(sshd: PrivateSshd, proxy: Proxy) -> None:
    proxy.stall()
    with pytest.raises(ConnectionLost):
        Session.connect(replace(sshd.endpoint, port=proxy.port), sshd.private_key, clock=CLOCK, timeout_s=0.5)


def blocked_calls(session: Session) -> list[threading.Thread]:
    """Threads that are blocked in every way there is; they end with ConnectionLost, or never."""
    reading, writing, waiting = (session.open("exec sleep 60") for _ in range(3))

    def fill() -> None:
        while True:
            writing.write(b"x" * 1_000_000)

    def expect_loss(call: object) -> None:
        with pytest.raises(ConnectionLost):
            call()  # type: ignore[operator]  # a callable without a type of its own

    calls = (reading.read, fill, waiting.exit_status, lambda: session.run("sleep 60"))
    threads = [threading.Thread(target=expect_loss, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in threads)
    return threads


def assert_all_end(threads: list[threading.Thread], within_s: float) -> None:
    end = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


def test_abort_ends_every_blocked_call(sshd: PrivateSshd) -> None:
    session = Session.connect(sshd.endpoint, sshd.private_key, clock=CLOCK)
    threads = blocked_calls(session)
    session.abort("enough")
    assert_all_end(threads, 1.0)
    assert not session.alive
    with pytest.raises(ConnectionLost) as caught:
        session.run("true")
    assert caught.value.details == "enough"


def test_a_cut_connection_ends_every_blocked_call(sshd: PrivateSshd, proxy: Proxy) -> None:
    session = connect(sshd, proxy)
    threads = blocked_calls(session)
    proxy.cut()
    assert_all_end(threads, 1.0)
    session.close()


def test_a_peer_that_vanishes_without_a_word_ends_every_blocked_call(sshd: PrivateSshd, proxy: Proxy) -> None:
    session = connect(sshd, proxy, silence_s=1.0)
    threads = blocked_calls(session)
    proxy.stall()
    assert_all_end(threads, 4.0)
    assert not session.alive
    session.close()


def test_a_quiet_connection_is_not_taken_for_a_dead_one(sshd: PrivateSshd, proxy: Proxy) -> None:
    with connect(sshd, proxy, silence_s=1.0) as session, session.open("sleep 2.5; echo done") as process:
        assert process.read() == b"done\n"


def test_a_busy_writer_is_not_taken_for_a_dead_one(sshd: PrivateSshd, proxy: Proxy) -> None:
    with connect(sshd, proxy, silence_s=1.0) as session, session.open("cat > /dev/null") as process:
        for _ in range(25):
            process.write(b"x")
            time.sleep(0.1)
        assert session.alive


@pytest.mark.parametrize("after_bytes", [0, 100_000, 3_000_000])
def test_a_cut_is_never_taken_for_the_end_of_the_output(sshd: PrivateSshd, proxy: Proxy, after_bytes: int) -> None:
    session = connect(sshd, proxy)
    with session.open("cat /dev/zero") as process, pytest.raises(ConnectionLost):
        read_and_cut(process, proxy, after_bytes)
    session.close()


def read_and_cut(process: RemoteProcess, proxy: Proxy, after_bytes: int) -> None:
    total = 0
    while data := process.read():
        total += len(data)
        if total >= after_bytes:
            proxy.cut()


def test_nothing_is_printed_and_no_thread_stays(sshd: PrivateSshd) -> None:
    script = f"""
import contextlib, pathlib, sys, threading, time
from provisioner.clock import SystemClock
from provisioner.errors import AuthError
from provisioner.models import Endpoint
from provisioner.remote.session import Session
assert "paramiko" not in sys.modules
key = pathlib.Path({str(sshd.key_file)!r}).read_text()
session = Session.connect(Endpoint("127.0.0.1", {sshd.port}, {sshd.user!r}, {sshd.host_public_key!r}), key,
                          clock=SystemClock())
session.run("echo hidden")
session.close()
with contextlib.suppress(AuthError):
    Session.connect(Endpoint("127.0.0.1", {sshd.port}, "nobody-here", {sshd.host_public_key!r}), key,
                    clock=SystemClock())
time.sleep(0.5)
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_endpoint_may_be_a_name(sshd: PrivateSshd) -> None:
    endpoint = Endpoint("localhost", sshd.port, sshd.user, sshd.host_public_key)
    with Session.connect(endpoint, sshd.private_key, clock=CLOCK) as session:
        assert session.run("true").exit_status == 0
    with pytest.raises(ConnectionLost):
        Session.connect(replace(endpoint, host="no-such-host.invalid"), sshd.private_key, clock=CLOCK)
