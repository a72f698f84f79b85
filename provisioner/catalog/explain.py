"""Why nothing fits: which wish rules out how many offers, and the smallest change that would help."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from provisioner.catalog.rank import rank
from provisioner.catalog.wish import Check, Wish, checks
from provisioner.models import Offer
from provisioner.units import format_gib, format_usd

_NAMES_SHOWN = 4
_COUNT = "--gpu :COUNT"


@dataclass(frozen=True)
class RuledOut:
    """What one wish alone rules out.

    Attributes:
        wish: The wish, as it could have been typed.
        offers: How many of all offers do not meet it.
        hint: What is near it, where nothing at all meets it.
    """

    wish: str
    offers: int
    hint: str = ""


@dataclass(frozen=True)
class NearMiss:
    """The smallest change of the wishes that gives an answer.

    Attributes:
        drop: The wishes that stand in the way.
        change: What to ask for instead, in words.
        offers: How many offers fit without them.
        best: The first of them.
    """

    drop: tuple[str, ...]
    change: str
    offers: int
    best: Offer


@dataclass(frozen=True)
class Explanation:
    """Why nothing fits.

    Attributes:
        considered: How many offers there are in all.
        ruled_out: Each wish, the one that rules out most first.
        nearest: The smallest change that helps; None when no change of one or two wishes does.
    """

    considered: int
    ruled_out: tuple[RuledOut, ...]
    nearest: NearMiss | None

    def lines(self) -> list[str]:
        """The explanation for people."""
        lines = [f"none of {self.considered:,} known offers fits"]
        width = max((len(out.wish) for out in self.ruled_out), default=0)
        for out in self.ruled_out:
            hint = f"; {out.hint}" if out.hint else ""
            lines.append(f"  {out.wish:<{width}}  rules out {out.offers:,}{hint}")
        if self.nearest is not None:
            lines.append(f"nearest: {self.nearest.change}")
        elif self.ruled_out:
            lines.append("nearest: no change of one or two wishes helps; ask for less")
        return lines


def explain(offers: Sequence[Offer], wish: Wish) -> Explanation:
    """Explain an empty answer.

    Args:
        offers: All offers that were considered.
        wish: What none of them meets.

    Returns:
        Which wish ruled out how many, and the nearest miss.
    """
    parts = checks(wish)
    failing = [frozenset(part.option for part in parts if not part.passes(offer)) for offer in offers]
    ruled_out = [_ruled_out(part, offers, sum(part.option in fails for fails in failing)) for part in parts]
    ruled_out.sort(key=lambda out: -out.offers)
    return Explanation(len(offers), tuple(ruled_out), _nearest(parts, wish, offers, failing))


def _ruled_out(part: Check, offers: Sequence[Offer], count: int) -> RuledOut:
    return RuledOut(part.shown, count, _hint(part, offers) if count == len(offers) and offers else "")


def _hint(part: Check, offers: Sequence[Offer]) -> str:
    """What to write instead of a name that no offer has."""
    import difflib

    read = {
        "--region": lambda offer: offer.region,
        "--instance-type": lambda offer: offer.instance_type,
        "--provider": lambda offer: offer.provider,
    }.get(part.option)
    if read is None:
        return "nothing meets it"
    wanted = part.shown.removeprefix(part.option).split()[0]
    near = difflib.get_close_matches(wanted, sorted({read(offer) for offer in offers}), n=2)
    return f"did you mean {' or '.join(near)}?" if near else "nobody has that name"


def _nearest(
    parts: Sequence[Check], wish: Wish, offers: Sequence[Offer], failing: Sequence[frozenset[str]]
) -> NearMiss | None:
    # The order is that of what a user gives up most easily; one wish before two.
    ease = ["--max-price", "--zone", "--region", "--market", "--vcpus", "--instance-type", "--gpu-memory"]
    ease += [_COUNT, "--provider", "--gpu"]
    present = sorted((part.option for part in parts), key=ease.index)
    shown = {part.option: part.shown for part in parts}
    for size in (1, 2):
        misses = []
        for drop in itertools.combinations(present, size):
            fits = [offer for offer, fails in zip(offers, failing, strict=True) if fails <= set(drop)]
            if fits:
                best = _closest(fits, drop, wish)
                told = tuple(shown[option] for option in drop)
                miss = NearMiss(told, _change(drop, wish, fits, best), len(fits), best)
                misses.append(("--gpu" in drop, best.price_usd_hour is None, miss))
        if misses:
            return min(misses, key=lambda rated: rated[:2])[2]  # the first of equals
    return None


def _closest(fits: Sequence[Offer], drop: Sequence[str], wish: Wish) -> Offer:
    """The offer that needs the smallest change, the cheapest of equals."""
    ordered = rank(fits)
    if "--gpu-memory" in drop:
        ordered.sort(key=lambda offer: -(offer.gpu_memory_gib or 0.0))
    if "--vcpus" in drop:
        ordered.sort(key=lambda offer: -(offer.vcpus or 0))
    if _COUNT in drop and wish.gpu is not None:
        count = wish.gpu.count
        ordered.sort(key=lambda offer: (offer.gpu_count < count, abs(offer.gpu_count - count)))
    return ordered[0]


def _change(drop: Sequence[str], wish: Wish, fits: Sequence[Offer], best: Offer) -> str:
    told = " and ".join(_instead(option, wish, fits, best) for option in drop)
    count = "1 offer fits" if len(fits) == 1 else f"{len(fits):,} offers fit"
    price = "at an unknown price" if best.price_usd_hour is None else f"at {format_usd(best.price_usd_hour)} an hour"
    gpu = f" ({best.gpu_count or 'part of a'} {best.gpu}, {format_gib(best.gpu_memory_gib)})" if best.gpu else ""
    named = " and ".join("the count" if option == _COUNT else option for option in drop)
    machine = f"{best.provider} {best.region} {best.instance_type}{gpu}, {best.market}"
    return f"{told}: {machine}, {price}; {count} without {named}"


def _instead(option: str, wish: Wish, fits: Sequence[Offer], best: Offer) -> str:
    """What to type so that the best one is found."""
    gpu = wish.gpu.name if wish.gpu and wish.gpu.name else "any"
    ordered = [best, *rank(fits)]
    changes = {
        "--max-price": f"--max-price {_rounded_up(best.price_usd_hour)}" if best.price_usd_hour is not None else "",
        "--gpu-memory": f"--gpu-memory {best.gpu_memory_gib:g}" if best.gpu_memory_gib else "",
        "--vcpus": f"--vcpus {best.vcpus}" if best.vcpus else "",
        "--market": f"--market {best.market}",
        _COUNT: f"--gpu {gpu}:{best.gpu_count}" if best.gpu_count else "",
        "--region": "--region " + _some([offer.region for offer in ordered]),
        "--provider": "--provider " + _some([offer.provider for offer in ordered]),
        "--gpu": f"--gpu {best.gpu}" if best.gpu and wish.gpu else "",
    }
    return changes.get(option, "") or f"without {option.removesuffix(' :COUNT')}"


def _rounded_up(price_usd_hour: float) -> str:
    """A price that the offer passes, with no more places than that takes."""
    for places in (2, 3, 4):
        text = f"{price_usd_hour:.{places}f}"
        if float(text) >= price_usd_hour:
            return text
    return repr(price_usd_hour)


def _some(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" (or {len(unique) - _NAMES_SHOWN} more)" if len(unique) > _NAMES_SHOWN else ""
    return " or ".join(unique[:_NAMES_SHOWN]) + more
