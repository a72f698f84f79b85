"""From what a user wants to the offers that a lease may be served from, and to how long it may last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from provisioner.catalog import rank, table
from provisioner.catalog.explain import explain
from provisioner.catalog.wish import Wish, check_gpu_known, matching
from provisioner.config import Placement, RunConfig, Times, max_ttl_for_budget
from provisioner.errors import ConfigError
from provisioner.models import Market, Offer
from provisioner.providers.base import OfferSource, Provider, Traits
from provisioner.settings import MarketPolicy

_MARKETS = {
    MarketPolicy.ON_DEMAND: (Market.ON_DEMAND,),
    MarketPolicy.SPOT: (Market.SPOT,),
    MarketPolicy.SPOT_FIRST: (Market.SPOT, Market.ON_DEMAND),
}


def offers_for(placement: Placement, provider: Provider) -> list[Offer]:
    """What a provider has for a placement, the best first.

    Args:
        placement: What is wanted.
        provider: Whose offers.

    Returns:
        At least one offer.

    Raises:
        ConfigError: Nothing fits.
    """
    present = list(provider.offers()) if isinstance(provider, OfferSource) else list(table.bundled())
    present = [offer for offer in present if offer.provider == provider.name]
    fitting = matching(present, _wish(placement))
    if not fitting:
        raise _nothing_fits(placement, provider, present)
    return rank.rank(fitting, spot_first=placement.market is MarketPolicy.SPOT_FIRST)


def times_within_budget(config: RunConfig, traits: Traits, offers: Sequence[Offer]) -> Times:
    """How long the lease lasts: what was asked for, cut to what the budget pays at the dearest of the offers.

    Args:
        config: What is wanted.
        traits: The provider's allowances.
        offers: What may be bought.

    Returns:
        The job's timeout and the lease's ttl.

    Raises:
        ConfigError: They do not fit, or a price is not known and a budget is given.
    """
    times = config.times(traits.boot_allowance_s, traits.collect_allowance_s)
    budget_usd = config.placement.max_cost_usd
    if budget_usd is None:
        return times
    affordable_s = min(max_ttl_for_budget(offer.price_usd_hour, budget_usd) for offer in offers)
    if affordable_s >= times.ttl_s:
        return times
    overhead_s = times.ttl_s - times.timeout_s
    if affordable_s <= overhead_s:
        raise ConfigError(
            f"--max-cost pays for {affordable_s:.0f} s, and boot and collect alone take {overhead_s:.0f} s",
            resolution="give a higher --max-cost, or choose a cheaper offer (`gpu-runner offers`)",
        )
    return replace(times, ttl_s=affordable_s, timeout_s=affordable_s - overhead_s)


def _wish(placement: Placement) -> Wish:
    return Wish(
        gpu=placement.gpu,
        without_gpu=placement.gpu is None and placement.gpu_memory_gib is None and not placement.instance_types,
        gpu_memory_gib=placement.gpu_memory_gib,
        instance_types=placement.instance_types,
        regions=placement.regions,
        zones=placement.zones,
        markets=_MARKETS[placement.market],
        max_price_usd_hour=placement.max_price_usd_hour,
    )


def _nothing_fits(placement: Placement, provider: Provider, present: Sequence[Offer]) -> ConfigError:
    check_gpu_known(placement.gpu, [*table.bundled(), *present])
    kinds = sorted({f"{offer.gpu}:{offer.gpu_count}" for offer in present if offer.gpu is not None})
    wanted = f" with GPU {placement.gpu}" if placement.gpu is not None else " like that"
    has = f"its GPUs: {', '.join(kinds)}" if kinds else "it has no GPU"
    return ConfigError(
        f"provider {provider.name} has no machine{wanted}",
        details="\n".join([has, *explain(present, _wish(placement)).lines()]),
        resolution=f"see what it has with `gpu-runner offers --provider {provider.name}`",
    )
