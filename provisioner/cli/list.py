"""``gpu-runner list``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from provisioner import units
from provisioner.cli import failures, table
from provisioner.cli.context import App, json_option, provider_option
from provisioner.errors import ExitCode
from provisioner.models import Inventory, Machine, Residue, Scope

_EPILOG = """\b
Examples:
  gpu-runner list
  gpu-runner list --json
"""


@click.command("list", epilog=_EPILOG)
@provider_option
@json_option
def command(providers: tuple[str, ...], *, as_json: bool) -> int:
    """List leased machines and what is left over."""
    app = App.from_environment()
    inventories = [provider.inventory(Scope()) for provider in app.providers(providers)]
    if as_json:
        sys.stdout.write(json.dumps(_document(inventories), indent=2) + "\n")
    else:
        _print(inventories)
    unread = [part for inventory in inventories for part in inventory.unread]
    for part in unread:
        failures.print_error(part.error)
    return ExitCode.TRANSIENT if unread else ExitCode.OK


def _print(inventories: list[Inventory]) -> None:
    machines = [machine for inventory in inventories for machine in inventory.machines]
    residue = [left for inventory in inventories for left in inventory.residue]
    if not machines and not residue:
        click.echo("no machines, nothing left over")
        return
    if machines:
        header = ("LEASE", "STATE", "WHERE", "TYPE", "AGE", "ENDS IN", "NOTE")
        click.echo("\n".join(table.lines(header, [_row(machine) for machine in machines])))
    if residue:
        rows = [(r.lease_id or "?", r.kind, f"{r.provider}/{r.region}", r.id) for r in residue]
        click.echo("\n".join(table.lines(("LEFT OVER OF", "KIND", "WHERE", "ID"), rows)))


def _row(machine: Machine) -> tuple[str, ...]:
    left_s = ends_in_s(machine)
    return (
        machine.ref.lease_id or "?",
        str(machine.state),
        f"{machine.ref.provider}/{machine.ref.region}",
        machine.offer.instance_type if machine.offer else "?",
        _time(machine.age_s),
        "overdue" if left_s is not None and left_s < 0 else _time(left_s),
        machine.reason or ("releasing" if machine.releasing else ""),
    )


def ends_in_s(machine: Machine) -> float | None:
    """Seconds until a machine ends by itself, as far as known: at its soft or its hard deadline."""
    known = [left for left in (machine.hard_deadline_in_s(), machine.soft_deadline_in_s) if left is not None]
    return min(known, default=None)


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else units.format_duration(round(seconds))


def _document(inventories: list[Inventory]) -> dict[str, Any]:
    return {
        "machines": [machine_document(m) for inventory in inventories for m in inventory.machines],
        "residue": [residue_document(r) for inventory in inventories for r in inventory.residue],
        "unread": [
            {"scope": part.scope, "error": part.error.brief} for inventory in inventories for part in inventory.unread
        ],
    }


def machine_document(machine: Machine) -> dict[str, Any]:
    """A machine as JSON: what is not known is null."""
    lease = machine.lease
    return {
        "lease_id": machine.ref.lease_id,
        "provider": machine.ref.provider,
        "region": machine.ref.region,
        "id": machine.ref.id,
        "state": str(machine.state),
        "attempt": machine.attempt,
        "owner": lease.owner if lease else None,
        "run": lease.run if lease else None,
        "labels": lease.labels if lease else None,
        "instance_type": machine.offer.instance_type if machine.offer else None,
        "price_usd_hour": machine.offer.price_usd_hour if machine.offer else None,
        "age_s": machine.age_s,
        "ends_in_s": ends_in_s(machine),
        "controller_seen_s": machine.controller_seen_s,
        "releasing": machine.releasing,
        "reason": machine.reason,
    }


def residue_document(residue: Residue) -> dict[str, Any]:
    """A left-over as JSON."""
    return {
        "lease_id": residue.lease_id,
        "provider": residue.provider,
        "region": residue.region,
        "kind": residue.kind,
        "id": residue.id,
        "age_s": residue.age_s,
    }
