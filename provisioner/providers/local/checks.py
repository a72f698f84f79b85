"""What ``doctor`` looks at on this host."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from provisioner.errors import GpuRunnerError
from provisioner.models import Check, CheckStatus
from provisioner.providers.local import cgroups, gpus, sshserver
from provisioner.providers.local.folder import Root
from provisioner.units import format_bytes, format_gib

_LITTLE_SPACE_BYTES = 1 << 30


def of_host(root: Root) -> list[Check]:
    """Whether machines can be made here, and with what.

    Args:
        root: Folder of the machines.

    Returns:
        One check for each thing.
    """
    return [_folder(root), _ssh_server(), _limits(), _gpus()]


def _folder(root: Root) -> Check:
    try:
        sshserver.check_path(root.path)
        root.check()
    except GpuRunnerError as error:
        return Check("machines folder", CheckStatus.FAIL, error.brief, error.resolution)
    there = next(path for path in (root.path, *root.path.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Check("machines folder", CheckStatus.FAIL, f"{there} cannot be written", "set GPU_RUNNER_LOCAL_DIR")
    free_bytes = shutil.disk_usage(there).free
    text = f"{root.path}, {format_bytes(free_bytes)} free"
    if free_bytes < _LITTLE_SPACE_BYTES:
        return Check("machines folder", CheckStatus.WARN, text, "free some space, or set GPU_RUNNER_LOCAL_DIR")
    return Check("machines folder", CheckStatus.OK, text)


def _ssh_server() -> Check:
    server = sshserver.choose_server()
    if Path(server).name == "sshd":
        return Check("ssh server", CheckStatus.OK, server)
    return Check(
        "ssh server",
        CheckStatus.WARN,
        "no usable sshd; an embedded server stands in, which is slower",
        "install OpenSSH's server (openssh-server); it need not be running",
    )


def _limits() -> Check:
    writable = [] if cgroups.disabled() else [group for group in cgroups.hierarchies() if os.access(group.own, os.W_OK)]
    if not writable:
        text = "none can be made here: machines have no limits of memory, CPU and processes"
        return Check("cgroups", CheckStatus.WARN, text)
    names = sorted({name for group in writable for name in group.controllers} or {"v2"})
    return Check("cgroups", CheckStatus.OK, ", ".join(names))


def _gpus() -> Check:
    found = gpus.find()
    if not found:
        return Check("gpus", CheckStatus.OK, "none; `--gpu` needs another provider")
    return Check("gpus", CheckStatus.OK, ", ".join(f"{gpu.model} {format_gib(gpu.memory_gib)}" for gpu in found))
