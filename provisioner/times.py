"""How long a lease lasts: timeout, ttl and budget, worked out from each other. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from provisioner.errors import BudgetError, ConfigError
from provisioner.units import format_duration

DEFAULT_TIMEOUT_S = 3600.0
_SLACK_S = 1e-6  # sums of fractions are a hair off


@dataclass(frozen=True)
class Times:
    """How long a lease lasts.

    Attributes:
        timeout_s: Longest time of the job.
        ttl_s: Longest life of the machine, from its creation.
    """

    timeout_s: float
    ttl_s: float


def derive_times(
    timeout_s: float | None,
    ttl_s: float | None,
    boot_allowance_s: float,
    collect_allowance_s: float,
    *,
    cap_timeout_s: float | None = None,
    cap_ttl_s: float | None = None,
) -> Times:
    """Work out the job's timeout and the lease's ttl from what was given.

    Args:
        timeout_s: Longest time of the job, if given.
        ttl_s: Longest life of the machine, if given.
        boot_allowance_s: Time from placing to the start of the job.
        collect_allowance_s: Time for artifacts and release.
        cap_timeout_s: The team's cap of the timeout; what nobody asked for is cut to it.
        cap_ttl_s: The team's cap of the ttl, likewise.

    Returns:
        Both.

    Raises:
        ConfigError: If ttl does not hold boot, timeout and collect, or a cap leaves no room for what was asked.
    """
    overhead_s = boot_allowance_s + collect_allowance_s
    longest_timeout_s = math.inf if cap_timeout_s is None else cap_timeout_s
    longest_ttl_s = math.inf if cap_ttl_s is None else cap_ttl_s
    if ttl_s is not None:
        return _within_ttl(timeout_s, ttl_s, overhead_s, longest_timeout_s)
    if timeout_s is None:
        timeout_s = min(DEFAULT_TIMEOUT_S, longest_timeout_s)
        return _within_ttl(None, min(timeout_s + overhead_s, longest_ttl_s), overhead_s, longest_timeout_s)
    if timeout_s + overhead_s > longest_ttl_s:
        raise ConfigError(
            f"a timeout of {format_duration(timeout_s)} needs a lease of {format_duration(timeout_s + overhead_s)}, "
            f"and max-ttl in [limits] allows {format_duration(longest_ttl_s)}",
            resolution=f"give a --timeout that leaves {format_duration(overhead_s)} to boot and collect",
        )
    return Times(timeout_s, timeout_s + overhead_s)


def _within_ttl(timeout_s: float | None, ttl_s: float, overhead_s: float, longest_timeout_s: float) -> Times:
    room_s = ttl_s - overhead_s
    overhead = f"{format_duration(overhead_s)} to boot and collect"
    if room_s <= 0:
        raise ConfigError(
            f"a lease of {format_duration(ttl_s)} leaves no time for a job: it takes {overhead}",
            resolution=f"give a --ttl well above {format_duration(overhead_s)}",
        )
    if timeout_s is None:
        return Times(min(room_s, longest_timeout_s), ttl_s)
    if timeout_s > room_s + _SLACK_S:
        raise ConfigError(
            f"--ttl {format_duration(ttl_s)} does not hold --timeout {format_duration(timeout_s)} and {overhead}",
            resolution=f"give --ttl {format_duration(timeout_s + overhead_s)} or more, or only one of the two",
        )
    return Times(timeout_s, ttl_s)


def max_ttl_for_budget(price_usd_hour: float | None, left_usd: float) -> float:
    """How long a budget lasts.

    Args:
        price_usd_hour: Price of the machine; None when not known.
        left_usd: What is left of the budget.

    Returns:
        Seconds; infinity for a machine that costs nothing.

    Raises:
        ConfigError: If the price is not known.
        BudgetError: If nothing is left.
    """
    if price_usd_hour is None:
        raise ConfigError(
            "the price of this offer is not known, so --max-cost cannot be kept",
            resolution="drop --max-cost, or add --max-price: an offer without a price does not pass it",
        )
    if price_usd_hour == 0:
        return math.inf
    if left_usd <= 0:
        raise BudgetError("the budget of --max-cost is used up", resolution="give a higher --max-cost")
    return left_usd / price_usd_hour * 3600
