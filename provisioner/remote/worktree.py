"""What is uploaded: the files of a work folder that git knows or does not ignore, or all of them without git."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.errors import ConfigError

_LIST = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
_SENDABLE = (stat.S_ISREG, stat.S_ISLNK, stat.S_ISDIR)


_NEVER_SENT = {b".git", b"gpu-runner-results"}


@dataclass(frozen=True)
class UploadPlan:
    """What an upload will send.

    Attributes:
        root: The work folder.
        files: Paths relative to it, sorted; bytes that are no UTF-8 as surrogate escapes.
        total_bytes: Their size.
        from_git: Whether git told which; otherwise every file is in.
        note: What a person should know about the choice; may be empty.
        left_out: What is there and cannot be sent: sockets, fifos, devices.
    """

    root: Path
    files: tuple[str, ...]
    total_bytes: int
    from_git: bool
    note: str = ""
    left_out: tuple[str, ...] = ()


def plan_upload(workdir: Path) -> UploadPlan:
    """Find out what to upload.

    Args:
        workdir: The work folder; only what is below it counts.

    Returns:
        The plan.

    Raises:
        ConfigError: It is no folder, or git cannot read its repository.
    """
    if not workdir.is_dir():
        raise ConfigError(f"the work folder {workdir} is not there", resolution="name another one: --workdir DIR")
    repository = _repository_of(workdir)
    git = shutil.which("git")
    if repository and git:
        names, note = set(_tracked(workdir, b"")), ""
    else:
        names = set(_everything(workdir))
        why = "git is not installed" if repository else f"{workdir} is not in a git repository"
        note = f"{why}: every file in it is uploaded"
    return _weighed(workdir, names, from_git=bool(repository and git), note=note)


def _weighed(workdir: Path, names: set[bytes], *, from_git: bool, note: str) -> UploadPlan:
    root = os.fsencode(workdir)
    total_bytes = 0
    files: list[str] = []
    left_out: list[str] = []
    for name in sorted(names):
        try:
            info = os.lstat(os.path.join(root, name))  # noqa: PTH118 - bytes
        except (FileNotFoundError, NotADirectoryError):
            continue  # tracked, and deleted in the work folder
        sendable = any(test(info.st_mode) for test in _SENDABLE)
        (files if sendable else left_out).append(name.decode("utf-8", "surrogateescape"))
        total_bytes += info.st_size if stat.S_ISREG(info.st_mode) else 0
    return UploadPlan(workdir, tuple(files), total_bytes, from_git, note, tuple(left_out))


def _repository_of(workdir: Path) -> Path | None:
    folder = workdir.resolve()
    return next((above for above in (folder, *folder.parents) if (above / ".git").exists()), None)


def _tracked(folder: Path, prefix: bytes) -> Iterator[bytes]:
    """What git lists below a folder; submodules and repositories within are asked in turn."""
    for listed in _git_list(folder):
        name = listed.rstrip(b"/")
        path = folder / os.fsdecode(name)
        if path.is_symlink() or not path.is_dir():
            yield prefix + name
        elif (path / ".git").exists():
            yield from _tracked(path, prefix + name + b"/")
        else:  # a submodule that was never checked out: an empty folder
            yield prefix + name


def _git_list(folder: Path) -> list[bytes]:
    done = subprocess.run(_LIST, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"git cannot list the files of {folder}",
            details=done.stderr.decode("utf-8", "replace").strip(),
            resolution=f"see what git says: git -C {folder} status",
        )
    return [name for name in done.stdout.split(b"\0") if name]


def _everything(workdir: Path) -> Iterator[bytes]:
    """Every file, link and empty folder, without git's own and without results of earlier runs."""
    stack = [b""]
    root = os.fsencode(workdir)
    while stack:
        folder = stack.pop()
        with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118 - bytes
            found = [entry for entry in entries if entry.name not in _NEVER_SENT]
        if folder and not found:
            yield folder
        for entry in found:
            name = folder + b"/" + entry.name if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                stack.append(name)
            else:
                yield name
