"""``gpu-runner cleanup``."""

from __future__ import annotations

from typing import Any

import click

from provisioner import cleanup
from provisioner.cli import failures, table
from provisioner.cli.context import App, json_option, provider_option
from provisioner.cli.streams import print_document, tell
from provisioner.errors import ExitCode
from provisioner.models import Scope

_EPILOG = """\b
Examples:
  gpu-runner cleanup --dry-run
  gpu-runner cleanup --json

\b
What is past its hard deadline goes at once. What only looks like an orphan goes when it is your own and a second
look, a little later, agrees. Exit code 79: something that should be gone may still be there.
"""


@click.command("cleanup", epilog=_EPILOG)
@provider_option
@click.option("--dry-run", is_flag=True, help="Remove nothing; show what would go, and why.")
@json_option
def command(providers: tuple[str, ...], *, dry_run: bool, as_json: bool) -> int:
    """Find and remove what outlived its lease."""
    app = App.from_environment()
    report = cleanup.CleanupReport()
    for provider in app.providers(providers):
        report += cleanup.clean(provider, owner=app.identity.owner, clock=app.clock, dry_run=dry_run)
    if not dry_run:
        _forget_gone(app, report)
    if report.clean and not dry_run:
        app.store.note_cleanup(app.clock.utc())
    if as_json:
        print_document(_document(report, dry_run=dry_run))
    else:
        _print(report, dry_run=dry_run)
    return ExitCode.OK if report.clean else ExitCode.RELEASE_UNCONFIRMED


def _forget_gone(app: App, report: cleanup.CleanupReport) -> None:
    """Drop records and keys of leases that no provider shows any more, once everything could be read."""
    inventories = [provider.inventory(Scope()) for provider in app.providers()]
    if report.unread or any(inventory.unread for inventory in inventories):
        return
    there = {m.ref.lease_id for inventory in inventories for m in inventory.machines}
    there |= {r.lease_id for inventory in inventories for r in inventory.residue}
    fresh = {record.lease.id for record in app.store.records() if _is_fresh(app, record.started_at.timestamp())}
    for lease_id in app.store.lease_ids():
        if lease_id not in there and lease_id not in fresh:
            app.store.forget(lease_id)


def _is_fresh(app: App, started_at_s: float) -> bool:
    """Whether a lease may still be on its way to a machine."""
    return 0 <= app.clock.utc().timestamp() - started_at_s < _FRESH_S


_FRESH_S = 600.0


def _print(report: cleanup.CleanupReport, *, dry_run: bool) -> None:
    verb = "would remove" if dry_run else "removed"
    rows = [(verb, f.lease_id or "?", f.kind, f"{f.provider}/{f.region}", f.id, f.reason) for f in report.removed]
    rows += [("kept", f.lease_id or "?", f.kind, f"{f.provider}/{f.region}", f.id, f.reason) for f in report.kept]
    if rows:
        click.echo("\n".join(table.lines(("", "LEASE", "KIND", "WHERE", "ID", "WHY"), rows)))
    elif report.clean:
        click.echo("nothing to clean up")
    for failure in report.failed:
        tell(f"could not remove {failure.finding.kind} {failure.finding.id}:")
        failures.print_error(failure.error)
    for part in report.unread:
        tell(f"{part.scope} could not be read; there may be more:")
        failures.print_error(part.error)


def _document(report: cleanup.CleanupReport, *, dry_run: bool) -> dict[str, Any]:
    return {
        "outcome": "ok" if report.clean else "release-unconfirmed",
        "dry_run": dry_run,
        "removed": [_finding(finding) for finding in report.removed],
        "kept": [_finding(finding) for finding in report.kept],
        "failed": [_finding(f.finding) | {"error": f.error.brief} for f in report.failed],
        "unread": [{"scope": part.scope, "error": part.error.brief} for part in report.unread],
    }


def _finding(finding: cleanup.Finding) -> dict[str, Any]:
    return {
        "provider": finding.provider,
        "region": finding.region,
        "kind": finding.kind,
        "id": finding.id,
        "lease_id": finding.lease_id,
        "verdict": str(finding.verdict),
        "reason": finding.reason,
    }
