"""What this host is: its boot, processors, memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

REGION = "localhost"
_GIB = 1 << 30
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


def boot_id() -> str:
    """Identity of this boot of the host; empty where the kernel tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_gib() -> float:
    """Main memory."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)


def most_processes() -> int:
    """Half of the processes that the kernel can number: one machine cannot starve the host."""
    try:
        return max(1024, int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii")) // 2)
    except (OSError, ValueError):
        return 16384


def architecture() -> str:
    """``x86_64`` or ``arm64``, or what the kernel says."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)
