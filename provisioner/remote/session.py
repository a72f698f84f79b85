"""One SSH connection to a machine: pinned host key, bounded waits, our own errors.

Every blocking call ends soon after ``abort()`` from another thread, and after the peer has gone silent.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from provisioner.clock import Clock, Deadline
from provisioner.errors import AuthError, CancelledError, ConfigError, GpuRunnerError, MachineLostError, TransientError
from provisioner.models import Endpoint

if TYPE_CHECKING:
    import paramiko

    from provisioner.remote.transport import Transport

_POLL_S = 0.1
_STDERR_TAIL_BYTES = 64 << 10
_CHUNK_BYTES = 1 << 20
_OUTPUT_LIMIT_BYTES = 16 << 20
_OPEN_TIMEOUT_S = 60.0


class ConnectionLost(TransientError):  # noqa: N818 - reads as what happened
    """The connection could not be made, or ended; the machine may well be alive."""


class RemoteTimeout(TransientError):  # noqa: N818 - reads as what happened
    """A command on the machine did not answer in time; the connection is alive."""


class RemoteEnded(GpuRunnerError):  # noqa: N818 - reads as what happened
    """Input was written to a remote process that has ended: ask for its exit status."""


class HostKeyError(MachineLostError):
    """Another machine answers at the address: its host key is not the pinned one."""


class LoginRefusedError(AuthError):
    """The machine does not let our key in."""


class Flag(Protocol):
    """What a cancel event must be able to tell."""

    def is_set(self) -> bool:
        """Whether an end is asked for."""
        ...


@dataclass(frozen=True)
class KeepAlive:
    """How a dead peer is found.

    Attributes:
        interval_s: How often it is asked for a sign of life.
        silence_s: It counts as gone after so long without a single packet.
    """

    interval_s: float = 5.0
    silence_s: float = 30.0


@dataclass(frozen=True)
class ExecResult:
    """What a finished command left.

    Attributes:
        exit_status: Its exit code; -1 when a signal ended it.
        stdout: All of its output.
        stderr: The last 64 KiB of its error output.
    """

    exit_status: int
    stdout: bytes
    stderr: bytes


class RemoteProcess:
    """A command that runs on the machine; one thread may read it while another writes to it."""

    def __init__(self, session: Session, channel: paramiko.Channel, clock: Clock) -> None:
        self._session = session
        self._channel = channel
        self._clock = clock
        self._stderr = bytearray()
        self._stderr_lock = threading.Lock()

    def read(self, size: int = _CHUNK_BYTES, *, timeout_s: float | None = None) -> bytes:
        """Read some output.

        Args:
            size: Bytes at the most.
            timeout_s: Longest wait; None waits as long as the connection lives.

        Returns:
            At least one byte, or nothing at the end of the output.

        Raises:
            ConnectionLost: The connection ended before the output did.
            RemoteTimeout: Nothing came in time.
        """
        deadline = None if timeout_s is None else Deadline.after(self._clock, timeout_s)
        while True:
            data = self._receive(size)
            if data:
                return data
            if data is not None:
                self._check_end()
                return b""
            if deadline is not None and deadline.passed():
                raise RemoteTimeout(f"no output within {timeout_s:.0f} s")

    def write(self, data: bytes | memoryview) -> None:
        """Write all of the data to its input.

        Args:
            data: What to send.

        Raises:
            ConnectionLost: The connection ended.
            RemoteEnded: The process ended before it took everything.
        """
        view = memoryview(data)
        while view:
            view = view[self._send(view) :]

    def close_stdin(self) -> None:
        """End its input."""
        with self._session.translated():
            self._channel.shutdown_write()

    def exit_status(self, timeout_s: float | None = None) -> int:
        """Wait for its end; output that nobody reads is left to the reader.

        Args:
            timeout_s: Longest wait; None waits as long as the connection lives.

        Returns:
            The exit code; -1 when a signal ended it.

        Raises:
            ConnectionLost: The connection ended first.
            RemoteTimeout: It did not end in time.
        """
        deadline = None if timeout_s is None else Deadline.after(self._clock, timeout_s)
        while not self._channel.status_event.wait(_POLL_S):
            self._drain_stderr()
            if deadline is not None and deadline.passed():
                raise RemoteTimeout(f"the command did not end within {timeout_s:.0f} s")
        self._drain_stderr()
        if self._channel.exit_status < 0 and not self._session.settled():
            raise self._session.lost()
        return int(self._channel.exit_status)

    @property
    def stderr_tail(self) -> bytes:
        """The last 64 KiB of its error output so far."""
        self._drain_stderr()
        return bytes(self._stderr)

    def close(self) -> None:
        """Give it up: its input and output are closed; safe to call again."""
        with contextlib.suppress(ConnectionLost), self._session.translated():
            self._channel.close()

    def __enter__(self) -> RemoteProcess:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def communicate(self, stdin: bytes, deadline: Deadline, limit_bytes: int) -> ExecResult:
        """Send the input, read everything and wait for the end. See ``Session.run``."""
        stdout = bytearray()
        pending = memoryview(stdin)
        while pending:
            pending = self._feed(pending)
            while self._channel.recv_ready():
                stdout += self._receive(_CHUNK_BYTES) or b""
            self._check_run(stdout, deadline, limit_bytes)
        self.close_stdin()
        while (data := self._receive(_CHUNK_BYTES)) != b"":
            stdout += data or b""
            self._check_run(stdout, deadline, limit_bytes)
        self._check_end()
        status = self.exit_status(max(1.0, deadline.remaining_s()))
        return ExecResult(status, bytes(stdout), self.stderr_tail)

    def _feed(self, pending: memoryview) -> memoryview:
        try:
            return pending[self._send_some(pending) :]
        except RemoteEnded:
            return pending[:0]  # it did not want the rest; its exit status tells

    @staticmethod
    def _check_run(stdout: bytearray, deadline: Deadline, limit_bytes: int) -> None:
        if deadline.passed():
            raise RemoteTimeout("the machine did not answer a command in time")
        if len(stdout) > limit_bytes:
            raise GpuRunnerError(f"a command on the machine wrote more than {limit_bytes} bytes")

    def _receive(self, size: int) -> bytes | None:
        """Some output; nothing at its end, None when none came within a moment."""
        self._drain_stderr()
        with self._session.translated():
            try:
                return bytes(self._channel.recv(size))
            except TimeoutError:
                return None

    def _send(self, view: memoryview) -> int:
        while True:
            if sent := self._send_some(view):
                return sent

    def _send_some(self, view: memoryview) -> int:
        """Send what fits within a moment; 0 when nothing did."""
        self._drain_stderr()  # a process that is stuck on its error output does not read its input
        with self._session.translated():
            try:
                sent = self._channel.send(bytes(view[: self._channel.out_max_packet_size]))  # it takes no more
            except TimeoutError:
                return 0
            except OSError:
                sent = 0
        if sent or not (self._channel.closed or self._channel.eof_sent):
            return int(sent)
        if not self._session.settled():
            raise self._session.lost()
        raise RemoteEnded("the command on the machine ended early")

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            with self._stderr_lock, self._session.translated():
                self._stderr += self._channel.recv_stderr(_CHUNK_BYTES)
                del self._stderr[:-_STDERR_TAIL_BYTES]

    def _check_end(self) -> None:
        if not self._channel.eof_received and not self._session.settled():
            raise self._session.lost()


class Session:
    """A live connection; made by ``connect``, used by several threads at once."""

    def __init__(self, transport: Transport, endpoint: Endpoint, clock: Clock) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._clock = clock
        self._ended = threading.Event()
        self._why = ""

    @classmethod
    def connect(
        cls,
        endpoint: Endpoint,
        private_key: str,
        *,
        clock: Clock,
        timeout_s: float = 15.0,
        cancel: Flag | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> Session:
        """Connect and log in, once.

        Args:
            endpoint: Where, and the host key that must answer.
            private_key: OpenSSH PEM of the user key.
            clock: Waits and silence are measured on it.
            timeout_s: For everything together.
            cancel: Ends the attempt soon after it is set.
            keep_alive: How a dead peer is found.

        Returns:
            The session.

        Raises:
            ConnectionLost: Nobody answers there (yet), or the connection broke.
            HostKeyError: Somebody else answers there.
            LoginRefusedError: Our key is not let in.
            ConfigError: The key or the address cannot be used.
            CancelledError: Cancelled.
        """
        from provisioner.remote.transport import Transport

        attempt = _Attempt(endpoint, Deadline.after(clock, timeout_s), cancel)
        key = _load_key(private_key)
        transport = Transport(attempt.dial(), clock)
        session = cls(transport, endpoint, clock)
        try:
            with session.translated():
                attempt.handshake(transport)
                attempt.log_in(transport, key)
        except BaseException:
            session.close()
            raise
        session.watch(keep_alive or KeepAlive())
        return session

    def run(
        self, command: str, *, stdin: bytes = b"", timeout_s: float = 60.0, limit_bytes: int = _OUTPUT_LIMIT_BYTES
    ) -> ExecResult:
        """Run a short command to its end.

        Args:
            command: For the login shell.
            stdin: Its whole input.
            timeout_s: For everything together.
            limit_bytes: Longest output that is accepted.

        Returns:
            Its exit code and output; a code other than 0 is not an error here.

        Raises:
            ConnectionLost: The connection ended first; the command may have run.
            RemoteTimeout: It did not end in time.
            GpuRunnerError: It wrote too much.
        """
        deadline = Deadline.after(self._clock, timeout_s)
        with self.open(command, timeout_s=timeout_s) as process:
            return process.communicate(stdin, deadline, limit_bytes)

    def open(self, command: str, *, timeout_s: float = _OPEN_TIMEOUT_S) -> RemoteProcess:
        """Start a command and leave its streams to the caller.

        Args:
            command: For the login shell.
            timeout_s: Longest wait for its start.

        Returns:
            The running command.

        Raises:
            ConnectionLost: The connection ended.
            RemoteTimeout: It did not start in time.
        """
        with self.translated():
            channel = self._transport.execute(command, Deadline.after(self._clock, timeout_s))
        return RemoteProcess(self, channel, self._clock)

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as known."""
        return not self._ended.is_set() and bool(self._transport.is_active())

    def settled(self) -> bool:
        """As ``alive``, but told only after a connection that is about to die has had the time to."""
        return not self._ended.is_set() and self._transport.settled()

    def close(self) -> None:
        """End the connection; safe to call again, and from any thread."""
        self.abort("closed")

    def abort(self, why: str = "aborted") -> None:
        """End the connection at once: every call that is blocked on it raises ConnectionLost.

        Args:
            why: For people.
        """
        self._why = self._why or why
        self._ended.set()
        self._transport.cut()

    def __enter__(self) -> Session:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def lost(self, details: str = "") -> ConnectionLost:
        """The error that tells of the end of this connection."""
        place = f"{self._endpoint.host} port {self._endpoint.port}"
        return ConnectionLost(f"lost the connection to {place}", details=self._why or details)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the errors of paramiko and of sockets into ours."""
        import paramiko

        try:
            yield
        except TimeoutError as error:
            raise RemoteTimeout("the machine did not answer in time") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self.lost(str(error) or type(error).__name__) from error

    def watch(self, keep_alive: KeepAlive) -> None:
        """Start to look for a peer that vanished without a word."""
        for target in (self._ask, self._listen):
            threading.Thread(target=target, args=(keep_alive,), name=f"ssh{target.__name__}", daemon=True).start()

    def _ask(self, keep_alive: KeepAlive) -> None:
        """Ask for a sign of life; may block for ever when the peer is gone, which ``_listen`` ends."""
        import paramiko

        while not self._clock.wait(self._ended, keep_alive.interval_s) and self._transport.is_active():
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                self._transport.global_request("keepalive@openssh.com", wait=True)

    def _listen(self, keep_alive: KeepAlive) -> None:
        while not self._clock.wait(self._ended, keep_alive.interval_s) and self._transport.is_active():
            silence_s = self._clock.elapsed_s() - self._transport.heard_s
            if silence_s > keep_alive.silence_s:
                self.abort(f"no sign of life for {silence_s:.0f} s")


@dataclass(frozen=True)
class _Attempt:
    """One try to connect: its address, its deadline, and who may end it."""

    endpoint: Endpoint
    deadline: Deadline
    cancel: Flag | None

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("cancelled while connecting")
        if self.deadline.passed():
            raise self.failed("no answer in time")

    def failed(self, details: str) -> ConnectionLost:
        return ConnectionLost(f"cannot reach {self.endpoint.host} port {self.endpoint.port}", details=details)

    def dial(self) -> socket.socket:
        self.check()
        try:
            found = socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self.failed(str(error)) from error
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            self._finish_dial(sock, sock.connect_ex(address))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise self.failed(error.strerror or str(error)) from error
            raise
        return sock

    def _finish_dial(self, sock: socket.socket, code: int) -> None:
        import errno
        import os

        while code in {errno.EINPROGRESS, errno.EALREADY}:
            self.check()
            if select.select([], [sock], [], _POLL_S)[1]:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def handshake(self, transport: Transport) -> None:
        import paramiko

        kind, _, rest = self.endpoint.host_public_key.partition(" ")
        try:
            transport.pin(kind)
        except ValueError as error:
            raise ConfigError(f"cannot pin a host key of type {kind!r}") from error
        negotiated = threading.Event()
        transport.start_client(event=negotiated)
        self._wait(negotiated)
        failure = transport.get_exception()
        if isinstance(failure, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(failure):
            raise self._other_machine(f"it has no {kind} host key")
        if not transport.is_active():
            raise self.failed(str(failure or "the connection ended during the handshake"))
        offered = transport.get_remote_server_key()
        if (offered.get_name(), offered.get_base64()) != (kind, rest.split(" ")[0]):
            raise self._other_machine(f"its host key is {offered.get_name()} {offered.fingerprint}")

    def log_in(self, transport: Transport, key: paramiko.PKey) -> None:
        answered = threading.Event()
        transport.auth_timeout = max(_POLL_S, self.deadline.remaining_s())
        transport.auth_publickey(self.endpoint.user, key, event=answered)
        self._wait(answered)
        if transport.is_authenticated():
            return
        if not transport.is_active():
            raise self.failed("the connection ended during the login")
        raise LoginRefusedError(
            f"{self.endpoint.host} port {self.endpoint.port} does not let {self.endpoint.user} in",
            details="the key of this lease was refused",
            resolution="the lease may belong to another holder: gpu-runner list",
        )

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(_POLL_S):
            self.check()

    def _other_machine(self, details: str) -> HostKeyError:
        return HostKeyError(
            f"another machine answers at {self.endpoint.host} port {self.endpoint.port}",
            details=f"{details}; the lease's machine has {self.endpoint.host_public_key[:60]}",
            resolution="nothing was sent to it; see what is left of the lease: gpu-runner list",
        )


def _load_key(private_key: str) -> paramiko.PKey:
    import paramiko

    try:
        return paramiko.Ed25519Key.from_private_key(io.StringIO(private_key))
    except (paramiko.SSHException, ValueError, IndexError) as error:
        raise ConfigError("the private key of the lease cannot be read", details=str(error)) from error
