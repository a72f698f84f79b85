"""``gpu-runner attach``."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import click

from provisioner.cli import summary
from provisioner.cli.context import App, Found, find, json_option, lease_argument
from provisioner.cli.machine import open_link
from provisioner.cli.run import make_env
from provisioner.config import RESULTS_FOLDER
from provisioner.errors import ConfigError
from provisioner.models import Lease
from provisioner.pipeline.run import ArtifactRequest, attach_job

_EPILOG = """\b
Examples:
  gpu-runner attach gr-4k7qz2mxw5
  gpu-runner attach --offset 0 --output results gr-4k7qz2mxw5
"""
_SYNC_EVERY_S = 30.0

output_option = click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for what comes back. Default: gpu-runner-results/<lease id>.",
)
artifact_option = click.option(
    "--artifact",
    "globs",
    multiple=True,
    metavar="GLOB",
    help="Instead of the globs that the run was given. Repeatable.",
)
take_over_option = click.option(
    "--take-over", is_flag=True, help="Even from a run that was heard of in the last 45 seconds."
)


@click.command("attach", epilog=_EPILOG)
@lease_argument
@click.option(
    "--offset", type=click.IntRange(min=0), default=0, show_default=True, help="First byte of the log to show."
)
@output_option
@artifact_option
@take_over_option
@json_option
def command(
    lease: str, *, offset: int, output: Path | None, globs: tuple[str, ...], take_over: bool, as_json: bool
) -> int:
    """Go on with a job that was left running, as if never gone."""
    app = App.from_environment()
    found = find(app, lease)
    env, reporter = make_env(app, found.provider, as_json=as_json)
    artifacts = artifact_request(app, found, globs, output)
    result = attach_job(env, found.machine, new_lease(found), artifacts, offset=offset, take_over=take_over)
    reporter.finish()
    return summary.finish(result, as_json=as_json)


def new_lease(found: Found) -> Lease:
    """The lease as it will be ours.

    Raises:
        ConfigError: Its tags cannot be read.
    """
    if found.machine.lease is None:
        raise ConfigError(f"the tags of machine {found.machine.ref.id} cannot be read")
    return replace(found.machine.lease, holder=secrets.token_hex(8))


def artifact_request(app: App, found: Found, globs: tuple[str, ...], output: Path | None) -> ArtifactRequest:
    """What comes home: as the run was told, unless the user says otherwise now.

    Args:
        app: The collaborators.
        found: The machine, which remembers what the run was told.
        globs: What the user says.
        output: Where to, if the user says so.

    Returns:
        The request.

    Raises:
        ConfigError: The machine cannot be asked.
    """
    from provisioner.remote.job import JobClient

    lease_id = found.machine.ref.lease_id or found.machine.ref.id
    with open_link(app, found) as link:
        meta = JobClient(link).status().meta
    return ArtifactRequest(
        globs=globs or tuple(meta.get("artifacts", ())),
        output=output or Path.cwd() / RESULTS_FOLDER / lease_id,
        require=bool(meta.get("require_artifacts", False)),
        sync_every_s=_SYNC_EVERY_S,
    )
