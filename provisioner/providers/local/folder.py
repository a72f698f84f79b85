"""Machines as folders: layout, locks, atomic creation and removal.

``<root>/<lease>-<attempt>`` is a machine. It is made as ``.new-<name>-<nonce>`` with its tags inside and renamed, so
that a machine without tags is never seen; it is removed by renaming to ``.gone-<name>-<nonce>`` first, so that half a
machine is never seen either. Locks are flocks on the folders themselves and leave no files behind.

Light imports only: a machine's first process uses this module.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provisioner.clock import SystemClock
from provisioner.errors import AuthError, ConfigError, TransientError

NEW = ".new-"
GONE = ".gone-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[1-9][0-9]{0,5}")
_LOCK_WAIT_S = 15.0
_LOCK_PAUSE_S = 0.01
_OTHERS = 0o022
_REAL = SystemClock()


class MachineFolder:
    """One machine's folder.

    Args:
        path: Absolute path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.home = path / "home"
        self.tmp = path / "tmp"
        self.tags_file = path / "machine.json"
        self.state_file = path / "state.json"
        self.spawned_file = path / "spawned.json"
        self.guard_lock_file = path / "guard.lock"
        self.console_file = path / "console.log"
        self.sshd_config = path / "sshd_config"
        self.host_key = path / "host_key"
        self.authorized_keys = path / "authorized_keys"
        self.session_script = path / "session"

    def exists(self) -> bool:
        """Whether it is there; raises where that cannot be told."""
        try:
            return stat.S_ISDIR(self.path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Hold the machine's lock against other threads and processes.

        Yields:
            Whether the folder is (still) there; without a folder there is nothing to lock.

        Raises:
            TransientError: If somebody else holds the lock for too long.
        """
        descriptor = _open_folder(self.path)
        if descriptor is None:
            yield False
            return
        try:
            _flock(descriptor, str(self.path))
            yield _same(descriptor, self.path)
        finally:
            os.close(descriptor)

    def guard_alive(self) -> bool:
        """Whether a guard holds the guard lock; it retries, so that this short look does not stop one that starts."""
        try:
            descriptor = os.open(self.guard_lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def take_guard_lock(self, patience_s: float = 1.0) -> int | None:
        """Become the machine's guard.

        Args:
            patience_s: How long to try; others look at the lock for moments.

        Returns:
            The descriptor that holds the lock; None when another guard lives, or the folder is gone.
        """
        try:
            descriptor = os.open(self.guard_lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            return None
        end_s = _REAL.elapsed_s() + patience_s
        while not _try_flock(descriptor):
            if _REAL.elapsed_s() >= end_s:
                os.close(descriptor)
                return None
            _REAL.sleep(_LOCK_PAUSE_S)
        return descriptor

    def retire(self) -> MachineFolder | None:
        """Rename it out of the way before its removal.

        Returns:
            The folder under its new name; None when it was gone.
        """
        gone = self.path.with_name(f"{GONE}{self.name}-{secrets.token_hex(4)}")
        try:
            self.path.rename(gone)
        except FileNotFoundError:
            return None
        return MachineFolder(gone)


class Root:
    """The folder that holds all machines.

    Args:
        path: Where; None for the environment's or this user's own.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(os.path.abspath(path or default_root()))  # noqa: PTH100  # links are kept as the user wrote them

    def ensure(self) -> None:
        """Make it, for this user only.

        Raises:
            ConfigError: If it is not this user's own, or others may write to it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check()
        except OSError as error:
            raise ConfigError(
                f"cannot use the folder of local machines {self.path}",
                details=str(error),
                resolution="set GPU_RUNNER_LOCAL_DIR to a folder of your own",
            ) from error

    def check(self) -> bool:
        """See whether it is there and safe to use.

        Returns:
            Whether it is there.

        Raises:
            AuthError: If it belongs to somebody else, or others may write to it.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
            raise AuthError(
                f"the folder of local machines {self.path} is not this user's own",
                details=f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
                resolution="set GPU_RUNNER_LOCAL_DIR to a folder of your own, with mode 0700",
            )
        return True

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock over all machines, as for handing out GPUs."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _flock(descriptor, str(self.path))
            yield
        finally:
            os.close(descriptor)

    def machine(self, name: str) -> MachineFolder:
        """The folder of a machine, there or not.

        Args:
            name: Lease and attempt.

        Returns:
            The folder.

        Raises:
            ConfigError: If that cannot be the name of a machine.
        """
        if not is_machine_name(name):
            raise ConfigError(
                f"{name!r} cannot be a machine's name",
                resolution="use letters, digits, '.', '_' and '-' in the lease id, 100 at most",
            )
        return MachineFolder(self.path / name)

    def entries(self) -> list[str]:
        """Names of everything in it; none when it is not there."""
        try:
            return sorted(os.listdir(self.path))  # noqa: PTH208  # names, not paths
        except FileNotFoundError:
            return []

    def machines(self) -> list[MachineFolder]:
        """All machines."""
        return [MachineFolder(self.path / name) for name in self.entries() if is_machine_name(name)]

    def leftovers(self) -> list[MachineFolder]:
        """Folders of machines half made or half removed."""
        return [MachineFolder(self.path / name) for name in self.entries() if machine_of_leftover(name)]

    def new(self, name: str) -> MachineFolder:
        """Make the folder in which a machine is prepared."""
        path = self.path / f"{NEW}{name}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        return MachineFolder(path)

    def publish(self, prepared: MachineFolder, name: str) -> bool:
        """Turn a prepared folder into the machine, if there is none of that name yet.

        Args:
            prepared: From ``new``.
            name: The machine's name.

        Returns:
            Whether this call made it.

        Raises:
            TransientError: If the prepared folder was swept away meanwhile.
        """
        try:
            prepared.path.rename(self.path / name)
        except FileNotFoundError as error:
            raise TransientError(
                f"machine {name} was swept away while it was being made", details=str(error)
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True


def default_root() -> Path:
    """``$GPU_RUNNER_LOCAL_DIR``, or a folder of this user's own below /var/tmp."""
    chosen = os.environ.get("GPU_RUNNER_LOCAL_DIR")
    return Path(chosen) if chosen else Path(f"/var/tmp/gpu-runner-{os.geteuid()}")  # noqa: S108  # checked for ownership


def is_machine_name(name: str) -> bool:
    """Whether this is the name of a machine."""
    return _NAME.fullmatch(name) is not None


def lease_of(name: str) -> str:
    """The lease in a machine's name."""
    return name.rpartition("-")[0]


def machine_of_leftover(name: str) -> str | None:
    """The machine that a ``.new-`` or ``.gone-`` folder belonged to; None for anything else."""
    for prefix in (NEW, GONE):
        if name.startswith(prefix):
            machine = name[len(prefix) :].rpartition("-")[0]
            return machine if is_machine_name(machine) else None
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object; None when the file is not there or holds none.

    Raises:
        OSError: If it is there and cannot be read.
    """
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_file(path, json.dumps(data, indent=1).encode())


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def remove_tree(path: Path) -> None:
    """Remove a folder whatever modes its parts have, also beside somebody else who does the same.

    Args:
        path: The folder; one that is gone already is fine.

    Raises:
        TransientError: If something in it cannot be removed now.
    """
    problem: OSError | None = None
    for _ in range(3):
        try:
            _remove_once(str(path))
        except OSError as error:
            problem = error
        if not os.path.lexists(path):
            return
    # Deeper than a path may be long: rm walks with descriptors. It also tells a mount point by name.
    done = subprocess.run(["rm", "-rf", "--", str(path)], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if os.path.lexists(path):
        said = done.stderr.decode(errors="replace").strip()
        raise TransientError(f"cannot remove {path}", details=said[:2000] or str(problem))


def _remove_once(path: str) -> None:
    pending, seen = [path], []
    while pending:
        folder = pending.pop()
        seen.append(folder)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(folder, 0o700)  # noqa: PTH101  # plain strings: a tree may hold very many
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        _unlink(entry.path)
    for folder in reversed(seen):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(folder)  # noqa: PTH106


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def _open_folder(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _flock(descriptor: int, what: str) -> None:
    end_s = _REAL.elapsed_s() + _LOCK_WAIT_S
    while not _try_flock(descriptor):
        if _REAL.elapsed_s() >= end_s:
            raise TransientError(f"{what} is locked by another gpu-runner for {_LOCK_WAIT_S:.0f} s")
        _REAL.sleep(_LOCK_PAUSE_S)


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the opened folder."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    then = os.fstat(descriptor)
    return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)
