"""An SSH server of our own, for hosts without OpenSSH's: commands and terminals for one user, by key only.

``python -m provisioner.providers.local.paramiko_server FOLDER ADDRESS PORT``, started by a machine's first process.
Every session goes through the same script as under sshd.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

from provisioner.providers.local.folder import MachineFolder

_CHUNK_BYTES = 1 << 16
_LAST_OUTPUT_S = 0.5
_NEVER_REKEY_BYTES = 1 << 40
_BACKLOG = 64


class _Session:
    """One channel: what was asked for before the command began, and the command."""

    def __init__(self, folder: MachineFolder) -> None:
        self._folder = folder
        self._terminal: tuple[str, int, int] | None = None
        self._master: int | None = None

    def want_terminal(self, term: str, width: int, height: int) -> None:
        self._terminal = (term, width, height)

    def resize(self, width: int, height: int) -> None:
        if self._master is not None:
            _set_size(self._master, width, height)

    def start(self, channel: paramiko.Channel, command: str | None) -> bool:
        """Run a command, or a shell; returns at once."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if command is not None:
            environment["SSH_ORIGINAL_COMMAND"] = command
        target = self._piped if self._terminal is None else self._on_terminal
        threading.Thread(target=self._guarded, args=(target, channel, environment), daemon=True).start()
        return True

    def _guarded(
        self,
        target: Callable[[paramiko.Channel, dict[str, str]], int],
        channel: paramiko.Channel,
        environment: dict[str, str],
    ) -> None:
        try:
            status = target(channel, environment)
        except OSError as error:
            print(f"session failed: {error}", file=sys.stderr)  # noqa: T201  # the machine's console
            status = 255
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the client has left
            channel.send_exit_status(status)
        channel.close()

    def _piped(self, channel: paramiko.Channel, environment: dict[str, str]) -> int:
        process = subprocess.Popen(
            [str(self._folder.session_script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin is not None  # noqa: S101  # asked for above
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        _thread(_feed, channel, process.stdin)
        outputs = [
            _thread(_drain, process.stdout, channel.sendall),
            _thread(_drain, process.stderr, channel.sendall_stderr),
        ]
        status = _status(process.wait())
        for output in outputs:
            output.join(_LAST_OUTPUT_S)
        if any(output.is_alive() for output in outputs):  # a daemon holds the pipe: tell the status, go on listening
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                channel.send_exit_status(status)
            for output in outputs:
                output.join()
        return status

    def _on_terminal(self, channel: paramiko.Channel, environment: dict[str, str]) -> int:
        assert self._terminal is not None  # noqa: S101  # else the pipes were chosen
        term, width, height = self._terminal
        master, slave = pty.openpty()
        self._master = master
        _set_size(master, width, height)
        process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, str(self._folder.session_script)],
            env={**environment, "TERM": term},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        with os.fdopen(master, "rb+", buffering=0, closefd=True) as terminal:
            _thread(_feed, channel, _Unclosed(terminal))
            _drain(terminal, channel.sendall, close=False)
            self._master = None
        return _status(process.wait())


# A new session has no terminal until it opens one; runs before the script, in its process.
_TAKE_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class _Server(paramiko.ServerInterface):
    """Who may come in, and what they may ask for."""

    def __init__(self, folder: MachineFolder) -> None:
        self._folder = folder
        self._sessions: dict[int, _Session] = {}

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002  # paramiko's signature, here and below
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002
        try:
            lines = self._folder.authorized_keys.read_text(encoding="utf-8").splitlines()
        except OSError:
            return AUTH_FAILED
        known = {tuple(line.split()[:2]) for line in lines}
        let_in = (key.get_name(), key.get_base64()) in known
        return AUTH_SUCCESSFUL if let_in else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind != "session":
            return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        self._sessions[chanid] = _Session(self._folder)
        return OPEN_SUCCEEDED

    def check_channel_pty_request(  # noqa: PLR0917
        self,
        channel: paramiko.Channel,
        term: bytes,
        width: int,
        height: int,
        pixelwidth: int,  # noqa: ARG002
        pixelheight: int,  # noqa: ARG002
        modes: bytes,  # noqa: ARG002
    ) -> bool:
        self._sessions[channel.chanid].want_terminal(term.decode(errors="replace"), width, height)
        return True

    def check_channel_window_change_request(
        self,
        channel: paramiko.Channel,
        width: int,
        height: int,
        pixelwidth: int,  # noqa: ARG002
        pixelheight: int,  # noqa: ARG002
    ) -> bool:
        self._sessions[channel.chanid].resize(width, height)
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._sessions[channel.chanid].start(channel, os.fsdecode(command))

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        return self._sessions[channel.chanid].start(channel, None)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


class _Writable(Protocol):
    def write(self, data: bytes, /) -> int | None: ...
    def close(self) -> None: ...


class _Unclosed:
    """A terminal that stays open when its input ends: its output may go on."""

    def __init__(self, terminal: _Writable) -> None:
        self._terminal = terminal

    def write(self, data: bytes, /) -> int | None:
        return self._terminal.write(data)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._terminal.write(b"\x04")


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _feed(channel: paramiko.Channel, sink: _Writable) -> None:
    """From the client to the command, until the client has no more."""
    with contextlib.suppress(OSError, ValueError):  # the command reads no more
        while data := channel.recv(_CHUNK_BYTES):
            view = memoryview(data)
            while view:
                view = view[sink.write(bytes(view)) or 0 :]
    with contextlib.suppress(OSError, ValueError):
        sink.close()


def _drain(source: _Readable, send: Callable[[bytes], object], *, close: bool = True) -> None:
    """From the command to the client, until the command has no more, or the client has left."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # a terminal ends with an I/O error
        while data := source.read(_CHUNK_BYTES):
            send(data)
    if close:
        source.close()


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code


def _set_size(terminal: int, width: int, height: int) -> None:
    with contextlib.suppress(OSError, struct.error):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def _serve(connection: socket.socket, folder: MachineFolder, key: paramiko.PKey) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(connection)
    transport.packetizer.REKEY_BYTES = _NEVER_REKEY_BYTES
    transport.add_server_key(key)
    try:
        transport.start_server(server=_Server(folder), event=threading.Event())
    except (OSError, EOFError, paramiko.SSHException) as error:
        print(f"connection failed: {error}", file=sys.stderr)  # noqa: T201  # the machine's console
        transport.close()


def main() -> None:
    """Entry of the process."""
    folder = MachineFolder(Path(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    key = paramiko.Ed25519Key.from_private_key_file(str(folder.host_key))
    with socket.create_server((sys.argv[2], int(sys.argv[3])), backlog=_BACKLOG) as listener:
        while True:
            connection, _ = listener.accept()
            _serve(connection, folder, key)


if __name__ == "__main__":
    main()
