"""``gpu-runner offers``: which machines can be had where, at what price."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from provisioner.catalog import table
from provisioner.catalog.rank import rank
from provisioner.catalog.wish import Wish, check_gpu_known, matching
from provisioner.cli import style
from provisioner.cli.options import options_for
from provisioner.cli.table import lines
from provisioner.clock import SystemClock
from provisioner.config_sources import load_flags
from provisioner.errors import GpuRunnerError
from provisioner.models import Market, Offer
from provisioner.providers import registry

if TYPE_CHECKING:
    from provisioner.catalog.explain import Explanation

_ROWS_ON_A_TERMINAL = 20
_INTERRUPTED = ("<5%", "5-10%", "10-15%", "15-20%", ">20%")

_EPILOG = """\b
Examples:
  gpu-runner offers --gpu A10G
  gpu-runner offers --gpu any --gpu-memory 24 --market spot --max-price 1.50
  gpu-runner offers --provider gcp --region 'us-*' --gpu H100:8
  gpu-runner offers --gpu L4 --json

\b
Prices come from a table that ships with gpu-runner; they are for ranking and estimates. A price that is not known shows
as ? and never passes --max-price. gpu-runner.toml and GPU_RUNNER_ variables are not looked at here.
"""


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        offers: What fits, in order.
        explanation: Why nothing fits; None when something does.
        unread: Providers whose offers could not be read, and why.
    """

    offers: tuple[Offer, ...]
    explanation: Explanation | None
    unread: tuple[tuple[str, GpuRunnerError], ...]


@click.command("offers", epilog=_EPILOG)
@options_for("offers")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help=f"Rows at most. Default: {_ROWS_ON_A_TERMINAL} on a terminal, else all.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else.")
def command(*, limit: int | None, as_json: bool, **flags: object) -> None:
    """Show which GPU machines can be had where, at what price: the cheapest first."""
    clock = SystemClock()
    answer = find(_wish(flags))
    if as_json:
        click.echo(_dumps(document(answer, limit)))
        return
    for name, error in answer.unread:
        click.echo(f"{style.warn('warning:')} offers of {name} could not be read: {error.brief}", err=True)
    if answer.explanation is not None:
        click.echo("\n".join(answer.explanation.lines()))
        return
    _print(answer.offers, limit, clock.utc().date())


def find(wish: Wish) -> Answer:
    """Find the offers that fit a wish, of the bundled table and of providers that know their own.

    Args:
        wish: What is wanted.

    Returns:
        The offers in order, or why there are none.

    Raises:
        ConfigError: If nobody knows a GPU of that name.
    """
    own, unread = _own_offers(wish.providers)
    known = (*own, *table.bundled())
    check_gpu_known(wish.gpu, known)
    found = rank(matching(known, wish))
    return Answer(tuple(found), None if found else _explain(known, wish), tuple(unread))


def _explain(known: Sequence[Offer], wish: Wish) -> Explanation:
    from provisioner.catalog.explain import explain

    return explain(known, wish)


def document(answer: Answer, limit: int | None) -> dict[str, Any]:
    """The JSON document.

    Args:
        answer: What was found.
        limit: Offers at most; None for all.

    Returns:
        What ``--json`` prints.
    """
    shown = answer.offers if limit is None else answer.offers[:limit]
    why = answer.explanation
    return {
        "count": len(answer.offers),
        "offers": [_fields(offer) for offer in shown],
        "prices": [
            {"provider": s.provider, "market": s.market.value, "as_of": s.as_of.isoformat(), "source": s.source}
            for s in table.sources().values()
        ],
        "unread": [{"provider": name, "error": error.brief} for name, error in answer.unread],
        "explanation": None
        if why is None
        else {
            "considered": why.considered,
            "ruled_out": [{"wish": out.wish, "offers": out.offers, "hint": out.hint} for out in why.ruled_out],
            "nearest": None
            if why.nearest is None
            else {
                "drop": list(why.nearest.drop),
                "change": why.nearest.change,
                "offers": why.nearest.offers,
                "best": _fields(why.nearest.best),
            },
        },
    }


def _dumps(found: dict[str, Any]) -> str:
    """The document with one offer on each line: readable, and three times as fast as indenting all of it."""
    rows = ",\n    ".join(map(json.dumps, found["offers"]))
    rest = json.dumps(found | {"offers": []}, indent=2)
    return rest.replace('"offers": []', f'"offers": [\n    {rows}\n  ]', 1) if rows else rest


def _wish(flags: dict[str, object]) -> Wish:
    values = load_flags("offers", flags)
    market = values.pop("market")
    # ``--gpu none`` and no --gpu at all read the same; only the first was typed.
    without_gpu = flags.get("gpu") is not None and values["gpu"] is None
    return Wish(**values, without_gpu=without_gpu, markets=() if market is None else (market,))


def _own_offers(wanted: Sequence[str]) -> tuple[list[Offer], list[tuple[str, GpuRunnerError]]]:
    offers: list[Offer] = []
    unread: list[tuple[str, GpuRunnerError]] = []
    for name in registry.names():
        if wanted and name not in wanted:
            continue
        try:
            offers += registry.own_offers(name)
        except GpuRunnerError as error:
            unread.append((name, error))
    return offers, unread


def _fields(offer: Offer) -> dict[str, object]:
    return {
        "provider": offer.provider,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "market": offer.market.value,
        "gpu": offer.gpu,
        "gpu_count": offer.gpu_count,
        "gpu_memory_gib": offer.gpu_memory_gib,
        "vcpus": offer.vcpus,
        "memory_gib": offer.memory_gib,
        "arch": offer.arch,
        "price_usd_hour": offer.price_usd_hour,
        "priced_on": None if offer.priced_on is None else offer.priced_on.isoformat(),
        "interruption_bucket": offer.interruption_bucket,
    }


def _print(offers: Sequence[Offer], limit: int | None, today: date) -> None:
    if limit is None and sys.stdout.isatty():
        limit = _ROWS_ON_A_TERMINAL
    shown = offers if limit is None else offers[:limit]
    header = ("PROVIDER", "REGION", "TYPE", "GPU", "GPU GIB", "VCPUS", "RAM GIB", "MARKET", "USD/H", "INTERRUPTED")
    head, *rows = lines(header, [_cells(offer) for offer in shown], right=("GPU GIB", "VCPUS", "RAM GIB", "USD/H"))
    click.echo(click.style(head, bold=True) if style.wanted(sys.stdout) else head)
    click.echo("\n".join(rows))
    sys.stdout.flush()  # what follows goes to stderr, and belongs below
    for line in _notes(offers, shown, today):
        click.echo(style.dim(line), err=True)


def _cells(offer: Offer) -> tuple[str, ...]:
    return (
        offer.provider,
        offer.zone or offer.region,
        offer.instance_type,
        "-" if offer.gpu is None else f"{offer.gpu_count} x {offer.gpu}" if offer.gpu_count else f"part of {offer.gpu}",
        "-" if offer.gpu is None else _figure(offer.gpu_memory_gib),
        _figure(offer.vcpus),
        _figure(offer.memory_gib),
        offer.market.value,
        "?" if offer.price_usd_hour is None else f"{offer.price_usd_hour:.4f}",
        "" if offer.interruption_bucket is None else _INTERRUPTED[offer.interruption_bucket],
    )


@cache
def _figure(number: float | None) -> str:
    return "?" if number is None else f"{number:.4g}" if number < 1000 else f"{number:.0f}"  # noqa: PLR2004


def _notes(offers: Sequence[Offer], shown: Sequence[Offer], today: date) -> list[str]:
    notes = []
    if len(shown) < len(offers):
        more = len(offers) - len(shown)
        notes.append(
            f"{more:,} more; see them with --limit {len(offers)}, or ask for less: --gpu, --region, --max-price"
        )
    ages = {f"{o.provider} {o.market} {o.priced_on} ({_age(o.priced_on, today)})" for o in shown if o.priced_on}
    told = sorted(ages)
    if told:
        notes.append(f"prices as of: {', '.join(told)}; for ranking and estimates")
    unknown = sum(offer.price_usd_hour is None for offer in shown)
    if unknown:
        notes.append(f"?: the price is not known ({unknown} of {len(shown)} shown)")
    if any(offer.market is Market.SPOT and offer.interruption_bucket is not None for offer in shown):
        notes.append("INTERRUPTED: how many of these machines were taken back in a month")
    return notes


def _age(day: date, today: date) -> str:
    days = (today - day).days
    return "1 day old" if days == 1 else f"{max(0, days)} days old"
