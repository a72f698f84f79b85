"""Names of GPUs: what people, clouds and drivers call the same thing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

LARGEST_COUNT = 1024

_WISH = re.compile(r"([A-Za-z0-9][A-Za-z0-9 ._+-]{0,59}?)(?::([0-9]{1,6}))?")
_NOISE = frozenset({"NVIDIA", "TESLA", "GEFORCE", "QUADRO", "GPU", "TENSOR", "CORE", "GRID"})
_FORM_FACTORS = frozenset(
    {"SXM", "SXM2", "SXM3", "SXM4", "SXM5", "SXM6", "PCIE", "PCI", "HBM2", "HBM2E", "HBM3", "HBM3E"}
)
_VARIANTS = frozenset({"NVL", "MEGA", "TI", "SUPER", "ADA", "MIG"})
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
        model: Letters and digits of the model in upper case, as ``A100`` or ``RTXPRO6000``.
        variant: What sets it apart within the model, as ``NVL``; empty for none, and for form factors such as SXM.
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
        elif word and word not in _NOISE and word not in _FORM_FACTORS:
            model.append(word)
    return GpuName("".join(model), "-".join(variant), memory_gib)
