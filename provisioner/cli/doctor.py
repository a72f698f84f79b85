"""``gpu-runner doctor``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import click

from provisioner import __version__, units
from provisioner.cli import style
from provisioner.cli.context import App, json_option, provider_option
from provisioner.errors import ExitCode, GpuRunnerError
from provisioner.models import Check, CheckStatus, Scope
from provisioner.providers.base import CheckSource, Provider
from provisioner.store import state_dir

_EPILOG = """\b
Examples:
  gpu-runner doctor
  gpu-runner doctor --json

\b
Exit code 0: all is well, or works less well. Exit code 72: a run cannot work here.
"""
_LITTLE_SPACE_BYTES = 1 << 30
_CLEANUP_IS_OLD = timedelta(days=2)


@click.command("doctor", epilog=_EPILOG)
@provider_option
@json_option
def command(providers: tuple[str, ...], *, as_json: bool) -> int:
    """Check that everything a run needs is there, before money is spent."""
    app = App.from_environment()
    groups = {"this machine": _own_checks(app)}
    for provider in app.providers(providers):
        groups[f"provider {provider.name}"] = _provider_checks(app, provider)
    checks = [check for group in groups.values() for check in group]
    if as_json:
        document = {name: [_document(check) for check in group] for name, group in groups.items()}
        sys.stdout.write(json.dumps({"version": __version__, "checks": document}, indent=2) + "\n")
    else:
        for name, group in groups.items():
            _print(name, group)
    return ExitCode.BOOT_FAILED if any(check.status is CheckStatus.FAIL for check in checks) else ExitCode.OK


def _own_checks(app: App) -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [
        Check("python", CheckStatus.OK, f"{version}, gpu-runner {__version__}"),
        _tool("git", "finds out what to upload", "install git; without it every file of the folder is uploaded"),
        _tool("ssh", "used by `gpu-runner ssh`", "install OpenSSH's client (openssh-client)"),
        _state_folder(),
        _last_cleanup(app),
    ]


def _tool(name: str, use: str, resolution: str) -> Check:
    path = shutil.which(name)
    if path is None:
        return Check(name, CheckStatus.WARN, f"not found; {use}", resolution)
    return Check(name, CheckStatus.OK, path)


def _state_folder() -> Check:
    folder = state_dir(os.environ)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Check("state folder", CheckStatus.FAIL, f"{folder} cannot be written", "set GPU_RUNNER_STATE_DIR")
    return space_check("state folder", existing, str(folder))


def space_check(name: str, existing: Path, text: str) -> Check:
    """Whether a folder has room.

    Args:
        name: Of the check.
        existing: A folder on that file system.
        text: What to say.

    Returns:
        The check.
    """
    free = shutil.disk_usage(existing).free
    status = CheckStatus.OK if free >= _LITTLE_SPACE_BYTES else CheckStatus.WARN
    resolution = "" if status is CheckStatus.OK else "free some space"
    return Check(name, status, f"{text}, {units.format_bytes(free)} free", resolution)


def _last_cleanup(app: App) -> Check:
    last = app.store.last_cleanup()
    if last is None:
        return Check(
            "cleanup", CheckStatus.WARN, "has not been seen running from here", "run `gpu-runner cleanup` on a schedule"
        )
    age = app.clock.utc() - last
    status = CheckStatus.OK if age < _CLEANUP_IS_OLD else CheckStatus.WARN
    return Check(
        "cleanup",
        status,
        f"last ran {units.format_duration(round(age.total_seconds()))} ago",
        "" if status is CheckStatus.OK else "run `gpu-runner cleanup` on a schedule",
    )


def _provider_checks(app: App, provider: Provider) -> list[Check]:
    checks = list(provider.checks()) if isinstance(provider, CheckSource) else []
    try:
        inventory = provider.inventory(Scope())
    except GpuRunnerError as error:
        return [*checks, Check("inventory", CheckStatus.FAIL, error.brief, error.resolution)]
    for part in inventory.unread:
        checks.append(Check("inventory", CheckStatus.FAIL, f"{part.scope}: {part.error.brief}", part.error.resolution))
    overdue = [m for m in inventory.machines if m.alive and (m.hard_deadline_in_s() or 1.0) <= 0]
    own = [m for m in inventory.machines if m.lease is not None and m.lease.owner == app.identity.owner]
    text = f"{len(inventory.machines)} machines ({len(own)} of yours), {len(inventory.residue)} things left over"
    if overdue or inventory.residue:
        status, next_step = CheckStatus.WARN, "run `gpu-runner cleanup`"
        text += f", {len(overdue)} overdue"
    else:
        status, next_step = CheckStatus.OK, ""
    return [*checks, Check("inventory", status, text, next_step)]


def _print(name: str, checks: list[Check]) -> None:
    click.echo(style.bold(name))
    ok, warn, fail = style.good("ok  "), style.warn("warn"), style.bad("FAIL")
    marks = {CheckStatus.OK: ok, CheckStatus.WARN: warn, CheckStatus.FAIL: fail}
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"  {marks[check.status]}  {check.name.ljust(width)}  {check.text}")
        if check.resolution:
            click.echo(f"        {'':{width}}{style.dim('next:')} {check.resolution}")


def _document(check: Check) -> dict[str, str]:
    return {
        "name": check.name,
        "status": str(check.status),
        "text": check.text,
        "resolution": check.resolution,
    }
