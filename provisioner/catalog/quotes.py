"""What a comparable GPU machine would have cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from provisioner.catalog import table
from provisioner.catalog.gpus import GpuWish
from provisioner.catalog.rank import rank
from provisioner.catalog.wish import Wish, matching
from provisioner.models import Market, Offer


@dataclass(frozen=True)
class Quote:
    """What a machine would have cost.

    Attributes:
        offer: The machine; its price is known.
        price_usd_hour: Its price.
        duration_s: For how long.
        cost_usd: What that makes.
        as_of: The day that the price was read.
        source: Who read it.
    """

    offer: Offer
    price_usd_hour: float
    duration_s: float
    cost_usd: float
    as_of: date
    source: str


def cheapest_like(
    gpu: GpuWish | None = None,
    gpu_memory_gib: float | None = None,
    *,
    duration_s: float,
    market: Market = Market.ON_DEMAND,
    arch: str = "x86_64",
) -> Quote | None:
    """Find the cheapest machine of the bundled table that is like a given one.

    Args:
        gpu: Its GPU; None for any one GPU.
        gpu_memory_gib: Memory of each of its GPUs.
        duration_s: How long it was used.
        market: How it would be bought.
        arch: Its architecture.

    Returns:
        What it would have cost. A GPU that no cloud sells is compared by count and memory; None if nothing is like it.
    """
    wishes = [Wish(gpu=gpu or GpuWish(None), gpu_memory_gib=gpu_memory_gib, markets=(market,))]
    if gpu is not None and gpu.name is not None:
        wishes.append(Wish(gpu=GpuWish(None, gpu.count), gpu_memory_gib=gpu_memory_gib, markets=(market,)))
    offers = [offer for offer in table.bundled() if offer.arch == arch]
    for wish in wishes:
        for offer in rank(matching(offers, wish))[:1]:
            if offer.price_usd_hour is not None:
                return _quote(offer, offer.price_usd_hour, duration_s)
    return None


def _quote(offer: Offer, price_usd_hour: float, duration_s: float) -> Quote:
    source = table.sources()[offer.provider, offer.market]
    cost_usd = price_usd_hour * duration_s / 3600
    return Quote(offer, price_usd_hour, duration_s, cost_usd, source.as_of, source.source)
