"""``gpu-runner run``: the main job."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from pathlib import Path

import click

from provisioner import ci, cleanup
from provisioner.cancel import Cancel
from provisioner.catalog import choose
from provisioner.cli import failures, summary
from provisioner.cli.context import App, json_option
from provisioner.cli.options import options_for
from provisioner.cli.reporter import Reporter
from provisioner.cli.signals import SignalWatch
from provisioner.config import RESULTS_FOLDER, RunConfig, Times, load_run
from provisioner.errors import GpuRunnerError
from provisioner.models import Lease, SshKeys
from provisioner.pipeline.base import Env, JobRequest, Timeline
from provisioner.pipeline.result import RunResult
from provisioner.pipeline.run import run_job
from provisioner.providers.base import Provider

_EPILOG = """\b
Examples:
  gpu-runner run -- python train.py
  gpu-runner run --artifact 'out/**' --output results -- python train.py
  gpu-runner run --setup 'pip install -r requirements.txt' --secret HF_TOKEN -- python train.py
  gpu-runner run --gpu any --timeout 2h --detach -- python train.py

\b
The job's exit code is passed through. gpu-runner's own: 64 usage, 69 no capacity, 70 internal, 72 boot failed,
74 artifacts lost, 75 transient, 76 machine lost, 77 credentials, 78 budget, 79 release not confirmed,
124 the job timed out, 130 interrupted, 143 terminated.
"""


@click.command("run", epilog=_EPILOG)
@options_for("run")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Settings file. Default: gpu-runner.toml."
)
@json_option
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="-- CMD...")
def command(argv: tuple[str, ...], config_file: Path | None, *, as_json: bool, **flags: object) -> int:
    """Run a job on a leased machine, bring its results back, and prove the machine gone."""
    config = load_run(
        flags,
        argv,
        environ=os.environ,
        cwd=Path.cwd(),
        interactive=_interactive(),
        config_file=config_file,
    )
    app = App.from_environment()
    provider = app.providers(config.placement.providers[:1])[0]
    request = build_request(app, config, provider)
    if config.output is None and config.artifacts:
        _ignore_results(config.cwd / RESULTS_FOLDER)
    result = run_with_observer(app, provider, request, as_json=as_json)
    return summary.finish(result, as_json=as_json)


def run_with_observer(app: App, provider: Provider, request: JobRequest, *, as_json: bool) -> RunResult:
    """Run a request with signals, progress and the sweep of what expired.

    Args:
        app: The collaborators.
        provider: Where the machine comes from.
        request: What is wanted.
        as_json: Whether stdout belongs to the JSON document.

    Returns:
        How it ended.
    """
    env, reporter = make_env(app, provider, as_json=as_json)
    sweep = Sweep(app, provider)
    sweep.start()
    result = run_job(env, request)
    sweep.tell(reporter)
    reporter.finish()
    return result


def make_env(app: App, provider: Provider, *, as_json: bool) -> tuple[Env, Reporter]:
    """The collaborators of a pipeline, with signals installed.

    Args:
        app: The collaborators of the command.
        provider: Where the machine is.
        as_json: Whether stdout belongs to the JSON document.

    Returns:
        The environment of the steps, and its reporter.
    """
    failures.watch_threads()
    cancel = Cancel()
    reporter = Reporter(app.clock, os.environ, log_fd=2 if as_json else 1)
    SignalWatch(cancel, interactive=_interactive(), say=reporter.warning).install()
    return Env(provider, app.clock, cancel, reporter, app.store, Timeline(app.clock)), reporter


def build_request(app: App, config: RunConfig, provider: Provider) -> JobRequest:
    """From what the user wants to what the pipeline needs.

    Args:
        app: The collaborators.
        config: What the user wants.
        provider: Where the machine comes from.

    Returns:
        The request, with keys and a holder of its own.

    Raises:
        ConfigError: Nothing on offer fits.
    """
    offers = choose.offers_for(config.placement, provider)
    times = choose.times_within_budget(config, provider.traits, offers)
    lease = _lease(app, config, provider, times)
    private_key, ssh = _keys()
    return JobRequest(
        lease=lease,
        private_key=private_key,
        ssh=ssh,
        offers=offers,
        command=config.argv,
        workdir=config.workdir or config.cwd,
        timeout_s=times.timeout_s,
        collect_allowance_s=provider.traits.collect_allowance_s,
        output=config.output_for(lease.id),
        env=config.env,
        secrets=config.secrets,
        setup=config.setup,
        artifacts=config.artifacts,
        require_artifacts=config.require_artifacts,
        sync_every_s=config.sync_every_s,
        keep_on_failure_s=config.keep_on_failure_s or None,
        detach=config.detach,
        wait_capacity_s=config.placement.wait_capacity_s,
        image=config.placement.image,
        disk_gib=config.placement.disk_gib,
    )


def _lease(app: App, config: RunConfig, provider: Provider, times: Times) -> Lease:
    placement = config.placement
    return Lease(
        id=placement.lease_id or app.identity.lease_id,
        holder=secrets.token_hex(8),
        owner=app.identity.owner,
        ttl_s=times.ttl_s,
        fuse_s=placement.fuse_s or provider.traits.fuse_s,
        heartbeat_timeout_s=placement.heartbeat_timeout_s,
        idle_timeout_s=placement.idle_timeout_s,
        on_controller_loss=config.on_controller_loss,
        run=app.identity.run,
        labels=dict(placement.labels),
    )


def _keys() -> tuple[str, SshKeys]:
    from provisioner.remote.keys import generate_keypair

    user, host = generate_keypair(), generate_keypair()
    return user.private_key_pem, SshKeys(user.public_key_line, host.private_key_pem, host.public_key_line)


def _ignore_results(folder: Path) -> None:
    """Make the results folder ignore itself; one that cannot be made is told of when results come."""
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        ignore = folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty() and ci.detect(os.environ) is ci.CiSystem.NONE


class Sweep:
    """Removes this owner's expired leases in the background, without slowing the start.

    Args:
        app: The collaborators.
        provider: Where to look.
    """

    def __init__(self, app: App, provider: Provider) -> None:
        self._app = app
        self._provider = provider
        self._report: cleanup.CleanupReport | None = None
        self._error = ""
        self._thread = threading.Thread(target=self._sweep, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def tell(self, reporter: Reporter) -> None:
        """Say what it found, as far as it came."""
        if self._error:
            reporter.warning(f"expired leases could not be swept: {self._error}")
        if self._report is None:
            return
        for finding in self._report.removed:
            reporter.note(f"swept {finding.lease_id}: {finding.reason}")
        for failure in self._report.failed:
            reporter.warning(f"could not sweep {failure.finding.id}: {failure.error.brief}")

    def _sweep(self) -> None:
        try:
            self._report = cleanup.sweep_expired(self._provider, owner=self._app.identity.owner, clock=self._app.clock)
        except GpuRunnerError as error:
            self._error = error.brief
