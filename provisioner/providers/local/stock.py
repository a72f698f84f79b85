"""What this host offers, and what of it is free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from provisioner.errors import CapacityError, ConfigError
from provisioner.models import Market, Offer
from provisioner.providers.local import cgroups, gpus, host
from provisioner.providers.local.tags import Tags

PROVIDER = "local"
CPU_TYPE = "cpu"
_GIB = 1 << 30


class Wanted(NamedTuple):
    """What a launch needs of this host.

    Attributes:
        gpu: Model; None for a machine without GPU.
        gpu_count: How many.
        present: The host's GPUs of that model.
        limits: What the machine may use.
    """

    gpu: str | None
    gpu_count: int
    present: tuple[gpus.Gpu, ...]
    limits: cgroups.Limits


def of_host() -> tuple[Offer, ...]:
    """One offer without GPU, and one for each number of GPUs of each model that is here."""
    found = [_offer(CPU_TYPE)]
    for model, members in gpus.counts(gpus.find()).items():
        memory_gib = min(gpu.memory_gib for gpu in members)
        numbers = range(1, len(members) + 1)
        found += [_offer(gpu_type(model, count), model, count, memory_gib) for count in numbers]
    return tuple(found)


def gpu_type(model: str, count: int) -> str:
    """Our name of a machine type with GPUs, like ``gpu-h100-x2``."""
    return f"gpu-{model.lower()}-x{count}"


def check(offer: Offer) -> Wanted:
    """Hold an offer against this host, before anything is made.

    Args:
        offer: What is to be bought.

    Returns:
        What that needs.

    Raises:
        ConfigError: If the host could never give it.
    """
    if offer.provider != PROVIDER or offer.market is not Market.ON_DEMAND:
        raise ConfigError(f"this host does not sell {offer.provider} {offer.instance_type} {offer.market}")
    limits = cgroups.Limits(
        memory_bytes=None if offer.memory_gib is None else round(offer.memory_gib * _GIB),
        cpus=None if offer.vcpus is None else float(offer.vcpus),
        pids=host.most_processes(),
    )
    if offer.gpu is None and offer.gpu_count == 0:
        if offer.instance_type != CPU_TYPE:
            raise _no_such(offer, gpus.counts(gpus.find()))
        return Wanted(None, 0, (), limits)
    by_model = gpus.counts(gpus.find())
    present = tuple(by_model.get(offer.gpu or "", ()))
    if offer.gpu_count < 1 or len(present) < offer.gpu_count:
        raise _no_such(offer, by_model)
    return Wanted(offer.gpu, offer.gpu_count, present, limits)


def allocate(wanted: Wanted, machines: Iterable[Tags]) -> tuple[str, ...]:
    """Choose free GPUs; the caller holds the lock over all machines.

    Args:
        wanted: From ``check``.
        machines: Tags of the machines that are there.

    Returns:
        UUIDs.

    Raises:
        CapacityError: If too few are free.
    """
    holders = {uuid: tags.lease.id for tags in machines for uuid in tags.gpus}
    free = [gpu.uuid for gpu in wanted.present if gpu.uuid not in holders]
    if len(free) >= wanted.gpu_count:
        return tuple(free[: wanted.gpu_count])
    busy = sorted({holders[gpu.uuid] for gpu in wanted.present if gpu.uuid in holders})
    raise CapacityError(
        f"{wanted.gpu_count} x {wanted.gpu} wanted, {len(free)} of this host's {len(wanted.present)} are free",
        details=f"the others are held by {', '.join(busy)}",
        resolution=f"wait for it, or end one with `gpu-runner down {busy[0]}`",
    )


def _offer(instance_type: str, gpu: str | None = None, count: int = 0, gpu_memory_gib: float | None = None) -> Offer:
    return Offer(
        provider=PROVIDER,
        region=host.REGION,
        instance_type=instance_type,
        gpu=gpu,
        gpu_count=count,
        gpu_memory_gib=gpu_memory_gib,
        vcpus=host.cpus(),
        memory_gib=host.memory_gib(),
        arch=host.architecture(),
        price_usd_hour=0.0,
    )


def _no_such(offer: Offer, by_model: dict[str, list[gpus.Gpu]]) -> ConfigError:
    there = ", ".join(f"{len(members)} x {model}" for model, members in by_model.items())
    wish = f"{offer.gpu_count} x {offer.gpu or 'GPU'}" if offer.gpu or offer.gpu_count else offer.instance_type
    return ConfigError(
        f"this host has no {wish}",
        details=f"it has {there}" if there else "it has no GPU that the NVIDIA driver shows",
        resolution="see what there is with `gpu-runner offers --provider local`",
    )
