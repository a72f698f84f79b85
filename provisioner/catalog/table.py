"""The bundled table, read when it is first asked for."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from provisioner.models import Market, Offer

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class PriceSource:
    """Where the prices of one provider and market come from.

    Attributes:
        provider: The provider.
        market: The market.
        as_of: The day they were read.
        source: Who read them, in words.
    """

    provider: str
    market: Market
    as_of: date
    source: str


@cache
def sources() -> dict[tuple[str, Market], PriceSource]:
    """Where the prices come from, by provider and market."""
    with (_DATA / "sources.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            PriceSource(row["provider"], Market(row["market"]), date.fromisoformat(row["as_of"]), row["source"])
            for row in csv.DictReader(file)
        ]
    return {(row.provider, row.market): row for row in rows}


@cache
def bundled() -> tuple[Offer, ...]:
    """Every offer of the bundled table, unsorted: each row on demand and as spot."""
    days = {key: source.as_of for key, source in sources().items()}
    with (_DATA / "gpu-offers.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)  # the header; tests hold the order of the columns
        return tuple(offer for row in rows for offer in _offers(row, days))


def _offers(row: list[str], days: dict[tuple[str, Market], date]) -> tuple[Offer, Offer]:
    provider, on_demand, spot, bucket = row[0], row[9], row[10], row[11]
    return (
        _offer(row, Market.ON_DEMAND, on_demand, days.get((provider, Market.ON_DEMAND)), ""),
        _offer(row, Market.SPOT, spot, days.get((provider, Market.SPOT)), bucket),
    )


def _offer(row: list[str], market: Market, price: str, day: date | None, bucket: str) -> Offer:
    # Positional, because thousands of these are made for one answer: the order is that of the Offer class.
    return Offer(
        row[0],
        row[1],
        row[2],
        market,
        row[3] or None,
        int(row[4]),
        float(row[5]) if row[5] else None,
        int(row[6]) if row[6] else None,
        float(row[7]) if row[7] else None,
        row[8] or None,
        float(price) if price else None,
        day if price else None,
        int(bucket) if bucket else None,
    )
