"""Names of GPUs: what people, clouds and drivers call the same thing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

LARGEST_COUNT = 1024
MEMORY_SHOWN = 0.93
"""A driver shows less memory than what is sold: 22.4 of 24 GB, 44.7 of 48. A wish is met by this part of it."""

_WISH = re.compile(r"([A-Za-z0-9][A-Za-z0-9 ._+-]{0,59}?)(?::([0-9]{1,6}))?")
# Words that name the maker, the line or the plug, and not the chip.
_NOISE = frozenset({
    "NVIDIA", "TESLA", "GEFORCE", "QUADRO", "RTX", "GTX", "GPU", "TENSOR", "CORE", "GRID", "BLACKWELL", "SERVER",
    "WORKSTATION", "EDITION", "GENERATION", "PCI", "PCIE", "SXM", "SXM2", "SXM3", "SXM4", "SXM5", "SXM6", "HBM2",
    "HBM2E", "HBM3", "HBM3E",
})  # fmt: skip
_VARIANTS = frozenset({"NVL", "MEGA"})
_PREFIX = re.compile(r"(?:RTX|GTX)(?=.)")
_MEMORY = re.compile(r"([0-9]{1,4})(?:GB|GIB|G)")


@dataclass(frozen=True)
class GpuWish:
    """What ``--gpu`` asks for.

    Attributes:
        name: The name as it was typed; None for any GPU.
        count: How many, at least 1.
    """

    name: str | None
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name or 'any'}:{self.count}"


@dataclass(frozen=True)
class GpuName:
    """A GPU's name, taken apart.

    Attributes:
        model: Letters and digits of the model in upper case, as ``A100`` or ``PRO6000``.
        variant: What sets it apart within the model, as ``NVL``; empty for none, and for plugs such as SXM.
        memory_gib: Memory that the name states, as in ``A100-80GB``; None when it states none.
    """

    model: str
    variant: str = ""
    memory_gib: int | None = None


def parse_wish(text: str) -> GpuWish | None:
    """Read a value of ``--gpu``.

    Args:
        text: ``NAME``, ``NAME:COUNT``, ``any``, ``any:COUNT``, or ``none`` for a machine without GPU.

    Returns:
        The wish; None for ``none``.

    Raises:
        ValueError: If it cannot be read.
    """
    match = _WISH.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:60]!r} is not a GPU; write NAME or NAME:COUNT, as A10G or H100:8, or any, or none")
    name, count = match[1].strip(), int(match[2] or 1)
    if not 1 <= count <= LARGEST_COUNT:
        raise ValueError(f"{text[:60]!r} asks for {count} GPUs; the count is 1 or more")
    if name.lower() == "none":
        return None
    return GpuWish(None if name.lower() == "any" else name, count)


@cache
def parse_name(name: str) -> GpuName:
    """Take a GPU's name apart, whoever wrote it.

    Args:
        name: As ``a10g``, ``A100-80GB``, ``nvidia-tesla-t4`` or ``NVIDIA H100 80GB HBM3``.

    Returns:
        Its parts; two names with equal parts mean the same GPU.
    """
    model: list[str] = []
    variant: list[str] = []
    memory_gib: int | None = None
    for word in re.split(r"[^A-Z0-9]+", name.upper()):
        memory = _MEMORY.fullmatch(word)
        if memory and model:
            memory_gib = int(memory[1])
        elif word in _VARIANTS and model:
            variant.append(word)
        elif word and word not in _NOISE:
            model.append(_PREFIX.sub("", word))
    return GpuName("".join(model), "-".join(variant), memory_gib)


def same(wished: str, name: str, memory_gib: float | None) -> bool:
    """Whether a GPU is what a wish names.

    A wish without variant or memory takes any of the model: ``A100`` takes 40 and 80 GB, ``H100`` takes NVL.

    Args:
        wished: The name that the user wrote.
        name: The name of the GPU on offer.
        memory_gib: Its memory, if known.

    Returns:
        Whether it fits.
    """
    wish, offered = parse_name(wished), parse_name(name)
    if wish.model != offered.model or (wish.variant and wish.variant != offered.variant):
        return False
    if wish.memory_gib is None:
        return True
    memory = memory_gib if memory_gib is not None else offered.memory_gib
    return memory is not None and abs(memory - wish.memory_gib) <= wish.memory_gib * (1 - MEMORY_SHOWN)
