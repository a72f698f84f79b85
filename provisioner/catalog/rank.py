"""The order in which offers are shown, and tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from provisioner.models import Market, Offer

_UNKNOWN_BUCKET = 5  # after every known one


def rank(offers: Iterable[Offer], *, providers: Sequence[str] = (), spot_first: bool = False) -> list[Offer]:
    """Order offers: the cheapest first, an unknown price last.

    Args:
        offers: What to order.
        providers: Providers by preference, which goes before the price; one that is not listed comes last.
        spot_first: Whether every spot offer of a provider goes before its on-demand offers.

    Returns:
        The offers; the same set gives the same order whatever order it comes in.
    """
    preference = {name: place for place, name in enumerate(providers)}

    def key(offer: Offer) -> tuple[object, ...]:
        bucket = _UNKNOWN_BUCKET if offer.interruption_bucket is None else offer.interruption_bucket
        return (
            preference.get(offer.provider, len(preference)),
            spot_first and offer.market is not Market.SPOT,
            offer.price_usd_hour is None,
            offer.price_usd_hour or 0.0,
            bucket,
            offer.provider,
            offer.region,
            offer.zone or "",
            offer.instance_type,
            offer.market.value,
        )

    return sorted(offers, key=key)
