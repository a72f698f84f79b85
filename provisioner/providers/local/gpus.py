"""The GPUs of this host, read with NVML; a missing library or driver means that there are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_GIB = 1 << 30
_NOISE = re.compile(r"\b(NVIDIA|TESLA|GEFORCE|QUADRO|GRID)\b", re.IGNORECASE)
_FORM = re.compile(
    r"\b(SXM\d?|PCIE|HBM\d\w?|\d+GB|NVL|BLACKWELL|SERVER|WORKSTATION|MAX-Q|EDITION|GENERATION)\b", re.IGNORECASE
)
_SPELLED = {"T4G": "T4g"}
# Models that a cloud's catalog tells apart by memory.
_BY_MEMORY = {"A100": (60.0, "A100-80GB"), "V100": (24.0, "V100-32GB")}


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        uuid: ``GPU-...``, stable across boots.
        model: As the catalog of offers names it.
        memory_gib: Its memory.
    """

    uuid: str
    model: str
    memory_gib: float


def find() -> tuple[Gpu, ...]:
    """The GPUs that are there, in the driver's order.

    Returns:
        None of them when the driver's library is missing or does not answer.
    """
    if not _driver_library_loads():
        return ()  # pynvml would find the same, after 30 ms of import
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _driver_library_loads() -> bool:
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # the name that pynvml loads on Linux
    except OSError:
        return False
    return True


def model_name(name: str, memory_gib: float) -> str:
    """The catalog's name of a model.

    Args:
        name: As the driver says, like ``NVIDIA A100-SXM4-80GB``.
        memory_gib: Its memory.

    Returns:
        Like ``A100-80GB``, ``H100``, ``RTX4090``.
    """
    flat = name.replace("-", " ") if not re.search(r"RTX", name, re.IGNORECASE) else name
    words = _FORM.sub(" ", _NOISE.sub(" ", flat)).split()
    model = "".join(words).upper() if words else "GPU"
    if re.search(r"\bH100\b.*\bNVL\b", name):
        return "H100-NVL"
    model = _SPELLED.get(model, model)
    least_gib, larger = _BY_MEMORY.get(model, (0.0, ""))
    return larger if larger and memory_gib >= least_gib else model


def counts(gpus: Sequence[Gpu]) -> dict[str, list[Gpu]]:
    """The GPUs by model."""
    found: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        found.setdefault(gpu.model, []).append(gpu)
    return found


def variables(uuids: Iterable[str]) -> dict[str, str]:
    """What shows a session these GPUs and no others.

    Args:
        uuids: The machine's GPUs; none hides all.

    Returns:
        Environment variables.
    """
    listed = ",".join(uuids)
    return {"CUDA_VISIBLE_DEVICES": listed, "NVIDIA_VISIBLE_DEVICES": listed or "void"}


def _read(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory_gib = round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / _GIB, 1)
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        model=model_name(_text(pynvml.nvmlDeviceGetName(handle)), memory_gib),
        memory_gib=memory_gib,
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
