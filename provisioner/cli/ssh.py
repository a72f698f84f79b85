"""``gpu-runner ssh``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from provisioner.cli.context import App, find, lease_argument
from provisioner.errors import BootError, ConfigError
from provisioner.models import Endpoint
from provisioner.pipeline.adopt import open_key

_EPILOG = """\b
Examples:
  gpu-runner ssh gr-4k7qz2mxw5
  gpu-runner ssh gr-4k7qz2mxw5 -- nvidia-smi
"""


@click.command("ssh", epilog=_EPILOG)
@lease_argument
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def command(lease: str, argv: tuple[str, ...]) -> int:
    """Open a shell on a lease's machine, or run a command there."""
    app = App.from_environment()
    found = find(app, lease)
    endpoint = found.machine.endpoint
    if endpoint is None:
        raise BootError(f"the machine of lease {lease} cannot be reached: it is {found.machine.state}")
    client = shutil.which("ssh")
    if client is None:
        raise ConfigError("there is no ssh client here", resolution="install OpenSSH's client (openssh-client)")
    key = open_key(found.provider, app.store, found.machine)
    with tempfile.TemporaryDirectory(prefix="gpu-runner-ssh-", dir=_memory_folder()) as folder:
        return subprocess.run([client, *_options(Path(folder), endpoint, key), "--", *argv], check=False).returncode


def _options(folder: Path, endpoint: Endpoint, key: str) -> list[str]:
    """Only the pinned key and only our key: no agent, no question, nothing of the user's own configuration."""
    identity, known = folder / "key", folder / "known_hosts"
    identity.touch(mode=0o600)
    identity.write_text(key, encoding="utf-8")
    known.write_text(f"[{endpoint.host}]:{endpoint.port} {endpoint.host_public_key}\n", encoding="utf-8")
    pinned = [
        "-o",
        f"UserKnownHostsFile={known}",
        "-o",
        "GlobalKnownHostsFile=/dev/null",
        "-o",
        "StrictHostKeyChecking=yes",
    ]
    mine = ["-F", "/dev/null", "-i", str(identity), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
    return [*mine, *pinned, "-o", "LogLevel=ERROR", "-p", str(endpoint.port), f"{endpoint.user}@{endpoint.host}"]


def _memory_folder() -> str | None:
    """A folder in memory where there is one: the key need not touch a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - private folder made inside
