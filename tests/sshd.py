"""A private OpenSSH server on 127.0.0.1 for tests: own keys, own configuration, current user, no root needed."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.models import Endpoint
from tests.tools import require

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PrintMotd no
PrintLastLog no
LogLevel ERROR
MaxSessions 100
SetEnv HOME={home}{environment}
Subsystem sftp internal-sftp
{extra}
"""


@dataclass
class PrivateSshd:
    """A running server.

    Attributes:
        port: Where it listens on 127.0.0.1.
        user: Login name.
        home: What HOME is in its sessions.
        key_file: The private key that it lets in.
        host_public_key: Its host key, ``ssh-ed25519 AAAA...``.
        folder: Keys and configuration.
        process: The listener.
    """

    port: int
    user: str
    home: Path
    key_file: Path
    host_public_key: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers, as the product sees it."""
        return Endpoint(host="127.0.0.1", port=self.port, user=self.user, host_public_key=self.host_public_key)

    @property
    def private_key(self) -> str:
        """The user's private key, OpenSSH PEM."""
        return self.key_file.read_text()

    def ssh_options(self) -> list[str]:
        """Options with which ssh, scp and ``rsync -e`` reach it."""
        return [
            *("-F", "none", "-i", str(self.key_file), "-o", f"UserKnownHostsFile={self.folder}/known_hosts"),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
        ]

    def drop_connections(self) -> None:
        """End every connection, as a broken network does; the listener stays."""
        for pid in _children(self.process.pid):
            for grandchild in _children(pid):
                _kill(grandchild)
            _kill(pid)

    def stop(self) -> None:
        """End the server and its connections."""
        self.drop_connections()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def private_sshd(folder: Path, *, home: Path | None = None, extra: str = "", path: str = "") -> Iterator[PrivateSshd]:
    """Start a server, and end it with all its connections.

    Args:
        folder: For keys and configuration; made when missing.
        home: HOME of its sessions; a folder below ``folder`` by default.
        extra: Further lines of its configuration.
        path: PATH of its sessions, where it is to be another.
    """
    sshd = require("sshd")
    home = home or folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        # The privilege separation folder that a distribution's service file would have made.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    host_public_key = _make_keys(folder)
    port = _free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_public_key}\n")
    config = folder / "sshd_config"
    environment = f" PATH={path}" if path else ""
    config.write_text(_CONFIG.format(port=port, folder=folder, home=home, extra=extra, environment=environment))
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
    server = PrivateSshd(port, getpass.getuser(), home, folder / "user_key", host_public_key, folder, process)
    try:
        _wait_until_listening(server)
        yield server
    finally:
        server.stop()


def _make_keys(folder: Path) -> str:
    keygen = require("ssh-keygen")
    for name in ("host_key", "user_key"):
        key = str(folder / name)
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key], check=True)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    return " ".join((folder / "host_key.pub").read_text().split()[:2])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_listening(server: PrivateSshd) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1) as peer:
            peer.recv(64)
            return
        if server.process.poll() is not None:
            break
        time.sleep(0.01)
    raise RuntimeError("sshd did not start: " + (server.folder / "sshd.log").read_text())


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
