"""``gpu-runner logs``."""

from __future__ import annotations

import contextlib

import click

from provisioner.cli.context import App, find, lease_argument
from provisioner.cli.machine import open_link
from provisioner.cli.streams import STDOUT, write_all
from provisioner.errors import CancelledError, ExitCode

_EPILOG = """\b
Examples:
  gpu-runner logs gr-4k7qz2mxw5
  gpu-runner logs -f --offset 1000000 gr-4k7qz2mxw5
"""


@click.command("logs", epilog=_EPILOG)
@lease_argument
@click.option("-f", "--follow", is_flag=True, help="Stay until the job ends; Ctrl-C stops watching, not the job.")
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True, help="First byte to show.")
def command(lease: str, *, follow: bool, offset: int) -> int:
    """Show the log of a lease's job."""
    from provisioner.remote.job import JobClient

    app = App.from_environment()
    with open_link(app, find(app, lease)) as link, contextlib.suppress(CancelledError):
        client = JobClient(link)
        if follow:
            client.follow(_show, offset)
        else:
            client.read_log(_show, offset)
    return ExitCode.OK


def _show(chunk: bytes) -> None:
    write_all(STDOUT, chunk)
