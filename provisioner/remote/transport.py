"""paramiko, tuned and held at arm's length: the only module that imports it, and itself imported only when needed.

What is tuned, and why, is measured: a GCM cipher first (paramiko lists it last), the default window, big packets, and
no re-keying from our side, because a key exchange in the middle of a transfer stalls it, or cuts it short.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko.buffered_pipe import BufferedPipe, PipeTimeout
from paramiko.common import cMSG_CHANNEL_REQUEST
from paramiko.packet import Packetizer

from provisioner.clock import Clock, Deadline

POLL_S = 0.1
_MAX_PACKET_BYTES = 1 << 17
_GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_GCM_BLOCK_BYTES = 16
_PACKET_HEAD = struct.Struct(">IB")
_RANDOM_BYTES = 4096
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")

_LOGGER = logging.getLogger("paramiko")
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False
_LOGGER.setLevel(logging.CRITICAL + 1)  # what goes wrong reaches the user as one of our errors, never as a traceback


class _Packetizer(Packetizer):
    """Remembers when the peer was last heard, and does not ask for new keys."""

    REKEY_BYTES = 1 << 40
    REKEY_BYTES_OVERFLOW_MAX = 1 << 40

    clock: Clock  # set by the transport before its thread starts
    heard_s = 0.0
    _gcm = False
    _random = b""

    def set_outbound_cipher(self, *arguments: Any, **options: Any) -> None:
        super().set_outbound_cipher(*arguments, **options)
        self._gcm = bool(options.get("aead"))

    def _build_packet(self, payload: bytes) -> bytes:
        """As paramiko's own, which copies the payload twice and asks the system for random bytes each time."""
        if not self._gcm:
            return bytes(super()._build_packet(payload))  # type: ignore[misc]  # missing in the stubs
        padding = 3 + _GCM_BLOCK_BYTES - (len(payload) + 4) % _GCM_BLOCK_BYTES
        if len(self._random) < padding:
            self._random = os.urandom(_RANDOM_BYTES)
        random, self._random = self._random[:padding], self._random[padding:]
        return b"".join((_PACKET_HEAD.pack(len(payload) + padding + 1, padding), payload, random))

    def read_message(self) -> tuple[int, paramiko.Message]:
        message = super().read_message()
        self.heard_s = self.clock.elapsed_s()
        return message


class _Pipe(BufferedPipe):  # type: ignore[type-arg]  # generic in the stubs alone
    """Hands received data on as it came.

    paramiko's own copies it three times through an array that grows and shrinks by megabytes; the page faults of that
    cost more than the decryption.
    """

    _lock: threading.Lock
    _cv: threading.Condition
    _event: threading.Event | None
    _closed: bool

    def __init__(self) -> None:
        super().__init__()
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def feed(self, data: bytes | str) -> None:
        with self._lock:
            chunk = data.encode() if isinstance(data, str) else data
            if chunk:
                self._chunks.append(chunk)
                self._size += len(chunk)
                self._cv.notify()
            if self._event is not None:
                self._event.set()

    def read_ready(self) -> bool:
        return self._size > 0

    def read(self, nbytes: int, timeout: float | None = None) -> bytes:
        with self._lock:
            if not self._chunks and not self._closed and (timeout == 0 or not self._wait(timeout)):
                raise PipeTimeout
            data = self._next(nbytes) if self._chunks else b""
            if self._event is not None and not self._chunks and not self._closed:
                self._event.clear()
            return data

    def empty(self) -> bytes:
        with self._lock:
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
            if self._event is not None and not self._closed:
                self._event.clear()
            return data

    def __len__(self) -> int:
        return self._size

    def _wait(self, timeout: float | None) -> bool:
        return self._cv.wait_for(lambda: bool(self._chunks) or self._closed, timeout)

    def _next(self, nbytes: int) -> bytes:
        """Whole chunks as far as they fit: few big reads leave the interpreter to the thread that decrypts."""
        taken = [self._chunks.popleft()]
        room = nbytes - len(taken[0])
        while self._chunks and len(self._chunks[0]) <= room:
            taken.append(self._chunks.popleft())
            room -= len(taken[-1])
        if room < 0:
            self._chunks.appendleft(taken[0][nbytes:])
            taken[0] = taken[0][:nbytes]
        data = taken[0] if len(taken) == 1 else b"".join(taken)
        self._size -= len(data)
        return data


class Transport(paramiko.Transport):
    """A client transport whose waits can be bounded and ended.

    Args:
        sock: A connected socket; the transport owns it.
        clock: What silence is measured on.
    """

    packetizer: _Packetizer

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        super().__init__(sock, default_max_packet_size=_MAX_PACKET_BYTES, packetizer_class=_Packetizer)
        self.packetizer.clock = clock
        options = self.get_security_options()
        options.ciphers = _GCM + tuple(name for name in options.ciphers if name not in _GCM)
        self._clock = clock
        self.daemon = True

    @property
    def heard_s(self) -> float:
        """When the peer last sent a whole packet, on the clock's scale."""
        return self.packetizer.heard_s

    def pin(self, host_key_type: str) -> None:
        """Negotiate no other type of host key than the pinned one."""
        names = _RSA_SIGNATURES if host_key_type == "ssh-rsa" else (host_key_type,)
        self.get_security_options().key_types = names

    def execute(self, command: str, deadline: Deadline) -> paramiko.Channel:
        """Open a channel and start a command on it.

        paramiko's own ``exec_command`` waits for the answer without a limit, and for ever if the transport ends
        between its check and its wait.

        Args:
            command: For the login shell.
            deadline: When to give up.

        Returns:
            The channel.

        Raises:
            TimeoutError: Past the deadline.
            paramiko.SSHException: Refused, or the transport ended.
        """
        channel = self.open_session(timeout=max(POLL_S, deadline.remaining_s()))
        channel.settimeout(POLL_S)
        channel.in_buffer = _Pipe()
        channel.event.clear()
        request = paramiko.Message()
        request.add_byte(cMSG_CHANNEL_REQUEST)
        request.add_int(channel.remote_chanid)
        request.add_string("exec")
        request.add_boolean(True)
        request.add_string(command)
        self._send_user_message(request)  # type: ignore[attr-defined]  # missing in the stubs
        self.wait_until(channel.event.wait, deadline)
        if not channel.event_ready:
            raise paramiko.SSHException("the server did not start the command")
        return channel

    def wait_until(self, wait: Callable[[float], bool], deadline: Deadline) -> None:
        """Repeat a short wait until it says yes.

        Args:
            wait: Waits for so many seconds at the most, and tells whether it is done.
            deadline: When to give up.

        Raises:
            TimeoutError: Past the deadline.
            EOFError: The transport ended.
        """
        while not wait(POLL_S):
            if not self.is_active():
                raise EOFError("the connection ended")
            if deadline.passed():
                raise TimeoutError

    def cut(self) -> None:
        """End the connection now; every blocked call returns. Safe from any thread."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        except OSError as error:
            _LOGGER.debug("already disconnected: %s", error)
        self.close()
        self.sock.close()  # close() leaves it open when the transport was never started, or had just ended

    def settled(self) -> bool:
        """Whether the transport is alive, told after its thread has had time to die.

        paramiko closes the channels of a dead transport a moment before it calls itself dead.
        """
        self.join(2 * POLL_S)
        return bool(self.is_active())
