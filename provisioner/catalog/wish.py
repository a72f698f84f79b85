"""What a user wants of an offer, as a list of checks that can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from provisioner.catalog import gpus
from provisioner.catalog.gpus import MEMORY_SHOWN, GpuWish
from provisioner.errors import ConfigError
from provisioner.models import Market, Offer


@dataclass(frozen=True)
class Wish:
    """What an offer must be. What is empty or None does not matter.

    Attributes:
        providers: One of these.
        gpu: This GPU, this many.
        without_gpu: A machine without GPU.
        gpu_memory_gib: Memory of each GPU, at least; met by the part of it that drivers show, see MEMORY_SHOWN.
        vcpus: Virtual CPUs, at least.
        instance_types: One of these; a ``*`` at the end matches any rest.
        regions: One of these, likewise.
        zones: One of these; an offer that leaves its zone open may pass, if the zone can be in its region.
        markets: One of these.
        max_price_usd_hour: Price by the hour, at most; an unknown price does not pass.
    """

    providers: tuple[str, ...] = ()
    gpu: GpuWish | None = None
    without_gpu: bool = False
    gpu_memory_gib: float | None = None
    vcpus: int | None = None
    instance_types: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    markets: tuple[Market, ...] = ()
    max_price_usd_hour: float | None = None


@dataclass(frozen=True)
class Check:
    """One part of a wish.

    Attributes:
        option: Its flag.
        shown: The flag and its value, as the user could have typed it.
        passes: Whether an offer fits.
    """

    option: str
    shown: str
    passes: Callable[[Offer], bool]


def checks(wish: Wish) -> tuple[Check, ...]:
    """Take a wish apart.

    Args:
        wish: What is wanted.

    Returns:
        One check for each part that matters.
    """
    made = [
        _names("--provider", wish.providers, lambda offer: offer.provider),
        *_gpu_checks(wish),
        _least("--gpu-memory", wish.gpu_memory_gib, lambda offer: offer.gpu_memory_gib, MEMORY_SHOWN),
        _least("--vcpus", wish.vcpus, lambda offer: offer.vcpus, 1.0),
        _names("--instance-type", wish.instance_types, lambda offer: offer.instance_type),
        _names("--region", wish.regions, lambda offer: offer.region),
        _zones(wish.zones),
        _names("--market", tuple(market.value for market in wish.markets), lambda offer: offer.market.value),
        _price(wish.max_price_usd_hour),
    ]
    return tuple(check for check in made if check is not None)


def matching(offers: Iterable[Offer], wish: Wish) -> list[Offer]:
    """The offers that fit.

    Args:
        offers: Where to choose from.
        wish: What is wanted.

    Returns:
        Those that pass every check, in the same order.
    """
    passes = [check.passes for check in checks(wish)]
    return [offer for offer in offers if all(fits(offer) for fits in passes)]


def check_gpu_known(gpu: GpuWish | None, offers: Iterable[Offer]) -> None:
    """Refuse a GPU that nobody has heard of.

    Args:
        gpu: The wish.
        offers: All offers that are known, of every provider.

    Raises:
        ConfigError: If no offer at all has a GPU of that name; with the nearest names.
    """
    if gpu is None or gpu.name is None:
        return
    known = {(offer.gpu, offer.gpu_memory_gib) for offer in offers if offer.gpu is not None}
    if any(gpus.same(gpu.name, name, memory_gib) for name, memory_gib in known):
        return
    names = sorted({name for name, _ in known})
    raise ConfigError(
        f"no offer has a GPU named {gpu.name!r}",
        details=f"known: {', '.join(names) or 'none'}",
        resolution=_nearest(gpu.name, names),
    )


def glob(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern, which may end with ``*``; upper and lower case do not matter."""
    pattern, name = pattern.lower(), name.lower()
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _nearest(wished: str, names: list[str]) -> str:
    import difflib

    wish = gpus.parse_name(wished)
    same_model = [name for name in names if gpus.parse_name(name).model == wish.model]
    by_model = {gpus.parse_name(name).model: name for name in reversed(names)}
    near = same_model or [by_model[model] for model in difflib.get_close_matches(wish.model, by_model, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else "see what there is: gpu-runner offers"


def _gpu_checks(wish: Wish) -> list[Check | None]:
    if wish.without_gpu:
        return [Check("--gpu", "a machine without GPU", lambda offer: offer.gpu is None)]
    if wish.gpu is None:
        return []
    name, count = wish.gpu.name, wish.gpu.count
    if name is None:
        model = Check("--gpu", "--gpu any", lambda offer: offer.gpu is not None)
    else:
        model = Check(
            "--gpu",
            f"--gpu {name}",
            lambda offer: offer.gpu is not None and gpus.same(name, offer.gpu, offer.gpu_memory_gib),
        )
    return [model, Check("--gpu :COUNT", f"a GPU count of {count}", lambda offer: offer.gpu_count == count)]


def _names(option: str, wanted: tuple[str, ...], read: Callable[[Offer], str]) -> Check | None:
    if not wanted:
        return None
    shown = " ".join(f"{option} {name}" for name in wanted)
    return Check(option, shown, lambda offer: any(glob(pattern, read(offer)) for pattern in wanted))


def _least(option: str, least: float | None, read: Callable[[Offer], float | None], part: float) -> Check | None:
    if least is None:
        return None
    bound = least * part

    def passes(offer: Offer) -> bool:
        value = read(offer)
        return value is not None and value >= bound

    return Check(option, f"{option} {least:g}", passes)


def _zones(wanted: tuple[str, ...]) -> Check | None:
    if not wanted:
        return None

    def passes(offer: Offer) -> bool:
        if offer.zone is not None:
            return any(glob(pattern, offer.zone) for pattern in wanted)
        # AWS and GCP name a zone after its region (us-east-1a, us-central1-a); Azure just counts (1, 2, 3).
        return any(pattern.isdigit() or pattern.startswith(offer.region) for pattern in wanted)

    return Check("--zone", " ".join(f"--zone {zone}" for zone in wanted), passes)


def _price(most: float | None) -> Check | None:
    if most is None:
        return None
    return Check(
        "--max-price",
        f"--max-price {most:g}",
        lambda offer: offer.price_usd_hour is not None and offer.price_usd_hour <= most,
    )
