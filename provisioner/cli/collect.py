"""``gpu-runner collect``."""

from __future__ import annotations

from pathlib import Path

import click

from provisioner.cli import summary
from provisioner.cli.attach import artifact_option, artifact_request, new_lease, output_option, take_over_option
from provisioner.cli.context import App, find, json_option, lease_argument
from provisioner.cli.run import make_env
from provisioner.pipeline.run import collect_job

_EPILOG = """\b
Examples:
  gpu-runner collect gr-4k7qz2mxw5
  gpu-runner collect --artifact 'checkpoints/**' --output results gr-4k7qz2mxw5
"""


@click.command("collect", epilog=_EPILOG)
@lease_argument
@output_option
@artifact_option
@take_over_option
@json_option
def command(lease: str, *, output: Path | None, globs: tuple[str, ...], take_over: bool, as_json: bool) -> int:
    """Bring the artifacts of a lease home, and release it if its job has ended."""
    app = App.from_environment()
    found = find(app, lease)
    env, reporter = make_env(app, found.provider, as_json=as_json)
    artifacts = artifact_request(app, found, globs, output)
    result = collect_job(env, found.machine, new_lease(found), artifacts, take_over=take_over)
    reporter.finish()
    return summary.finish(result, as_json=as_json)
