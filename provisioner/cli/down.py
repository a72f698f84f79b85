"""``gpu-runner down``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import click

from provisioner import units
from provisioner.cli import failures, style
from provisioner.cli.context import App, complete_lease, json_option, provider_option
from provisioner.cli.reporter import Reporter
from provisioner.cli.streams import print_document, tell
from provisioner.clock import Deadline
from provisioner.errors import ExitCode, NotFoundError, ReleaseUnconfirmedError, TransientError
from provisioner.models import Expect, Inventory, Machine, Scope
from provisioner.pipeline.release import Releaser, ReleaseResult
from provisioner.providers.base import Provider

_EPILOG = """\b
Examples:
  gpu-runner down gr-4k7qz2mxw5
  gpu-runner down --now gr-4k7qz2mxw5

\b
A run that is alive is asked first: it brings its artifacts home and releases the machine itself. A lease that is gone
already is a success.
"""

_CONTROLLER_IS_THERE_S = 45.0
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Down:
    """How one lease went down."""

    lease_id: str
    was_there: bool
    release: ReleaseResult


@click.command("down", epilog=_EPILOG)
@click.argument("leases", metavar="LEASE...", nargs=-1, required=True, shell_complete=complete_lease)
@provider_option
@click.option("--now", is_flag=True, help="Do not wait for a live run to bring its artifacts home.")
@json_option
def command(leases: tuple[str, ...], providers: tuple[str, ...], *, now: bool, as_json: bool) -> int:
    """End leases now, with the artifacts so far if their run is alive."""
    app = App.from_environment()
    downs = [_down(app, provider, lease_id, now=now) for lease_id in leases for provider in app.providers(providers)]
    if as_json:
        print_document({"leases": [_document(down) for down in downs]})
    for down in downs:
        _print(down)
    return ExitCode.OK if all(down.release.confirmed for down in downs) else ExitCode.RELEASE_UNCONFIRMED


def _down(app: App, provider: Provider, lease_id: str, *, now: bool) -> Down:
    inventory = provider.inventory(Scope(lease_id=lease_id))
    there = bool(inventory.machines or inventory.residue)
    started_s = app.clock.elapsed_s()
    if not now:
        _ask(app, provider, inventory)
    releaser = Releaser(provider, app.clock, Reporter(app.clock, {}), lease_id=lease_id, holder=None)
    result = releaser.release()
    if result.confirmed:
        app.store.forget(lease_id)
    seconds = app.clock.elapsed_s() - started_s
    return Down(lease_id, there, ReleaseResult(result.confirmed, result.billing_stopped, seconds, result.left))


def _ask(app: App, provider: Provider, inventory: Inventory) -> None:
    """Let a run that is alive bring its artifacts home and release its machine itself."""
    held = [machine for machine in inventory.machines if machine.alive and _has_controller(machine)]
    for machine in held:
        tell(f"asking the run that holds {machine.ref.lease_id} to end")
        with contextlib.suppress(NotFoundError):  # it ended while we asked
            provider.mark_releasing(machine.ref, Expect(machine.ref.lease_id))
    deadline = Deadline.after(app.clock, _ANSWER_S)
    while any(_still_held(provider, machine) for machine in held) and not deadline.passed():
        app.clock.sleep(provider.traits.poll_s)


def _has_controller(machine: Machine) -> bool:
    return machine.controller_seen_s is not None and machine.controller_seen_s < _CONTROLLER_IS_THERE_S


def _still_held(provider: Provider, machine: Machine) -> bool:
    try:
        now = provider.describe(machine.ref)
    except NotFoundError:
        return False
    except TransientError:
        return True  # unknown is not gone
    return now.alive and _has_controller(now)


def _print(down: Down) -> None:
    release = down.release
    if not release.confirmed:
        failures.print_error(
            ReleaseUnconfirmedError(
                f"{down.lease_id} is not confirmed gone",
                details="\n".join(release.left),
                resolution=f"run `gpu-runner down {down.lease_id}` again, then `gpu-runner cleanup`",
            )
        )
    elif down.was_there:
        seconds = units.format_duration(round(release.seconds, 1))
        tell(f"{down.lease_id}: {style.good('proven gone')} ({seconds})")
    else:
        tell(f"{down.lease_id}: nothing of it is there; it is gone already")


def _document(down: Down) -> dict[str, Any]:
    return {
        "lease_id": down.lease_id,
        "was_there": down.was_there,
        "release": {
            "confirmed": down.release.confirmed,
            "billing_stopped": down.release.billing_stopped,
            "seconds": round(down.release.seconds, 3),
            "left": list(down.release.left),
        },
    }
