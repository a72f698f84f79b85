"""``gpu-runner ssh``."""

from __future__ import annotations

import secrets
import shutil
import subprocess

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
    visit = f"ssh-{secrets.token_hex(4)}"
    files = {
        "key": open_key(found.provider, app.store, found.machine),
        "known_hosts": f"[{endpoint.host}]:{endpoint.port} {endpoint.host_public_key}\n",
    }
    try:  # in the state folder, because a key that a killed process left there is found by cleanup
        folder = app.store.save_access(lease, visit, files)
        return subprocess.run([client, *_options(endpoint), "--", *argv], check=False, cwd=folder).returncode
    finally:
        app.store.forget(lease, visit)


def _options(endpoint: Endpoint) -> list[str]:
    """Only the pinned key and only our key: no agent, no question, nothing of the user's own configuration.

    The files are named relative to the folder that ssh runs in: it reads more than a name into a whole path.
    """
    pinned = [
        "-o",
        "UserKnownHostsFile=known_hosts",
        "-o",
        "GlobalKnownHostsFile=/dev/null",
        "-o",
        "StrictHostKeyChecking=yes",
    ]
    mine = ["-F", "/dev/null", "-i", "key", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
    return [*mine, *pinned, "-o", "LogLevel=ERROR", "-p", str(endpoint.port), f"{endpoint.user}@{endpoint.host}"]
