"""The state folder: what the controller writes down before it acts. A convenience, never the truth.

``down``, ``list`` and ``cleanup`` work without it; only a machine's private key is nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from provisioner.errors import ConfigError
from provisioner.models import Lease, LeaseRecord, OnControllerLoss

_ABANDONED_S = 60.0


def state_dir(environ: Mapping[str, str]) -> Path:
    """Where state is kept: ``GPU_RUNNER_STATE_DIR``, or by the XDG base directory convention."""
    if environ.get("GPU_RUNNER_STATE_DIR"):
        return Path(environ["GPU_RUNNER_STATE_DIR"])
    home = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111, PTH118 - Path.home() raises without a home
    return Path(home) / "gpu-runner"


def write_atomically(path: Path, text: str) -> None:
    """Write a private file so that a reader sees the old text or the new one, and a crash leaves one of them.

    Args:
        path: The file; its folder exists.
        text: Its new content.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            written_s = os.fstat(file.fileno()).st_mtime
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _remove_abandoned(path, written_s)


def _remove_abandoned(path: Path, now_s: float) -> None:
    """Remove what writers left who were killed: temporary files far older than what was just written."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):  # somebody else removed it, or the next writer will
            if now_s - temporary.stat().st_mtime > _ABANDONED_S:
                temporary.unlink()


class LeaseStore:
    """Records and private keys of leases: a folder for each holder, since two processes may try for one lease.

    Args:
        root: The state folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._leases = root / "leases"

    def save(self, record: LeaseRecord) -> None:
        """Write a record down.

        Args:
            record: What is about to be done.

        Raises:
            ConfigError: If the state folder cannot be written.
        """
        text = json.dumps(asdict(record) | {"started_at": record.started_at.isoformat()}, indent=1)
        self._write(self._folder(record.lease.id, record.lease.holder), "lease.json", text)

    def save_key(self, lease_id: str, holder: str, private_key: str) -> None:
        """Keep the private key that opens a lease's machine.

        Args:
            lease_id: The lease.
            holder: Who holds it.
            private_key: OpenSSH PEM.

        Raises:
            ConfigError: If the state folder cannot be written.
        """
        self._write(self._folder(lease_id, holder), "key", private_key)

    def save_access(self, lease_id: str, visit: str, files: Mapping[str, str]) -> Path:
        """Keep what another program needs to get in, where ``forget`` finds it even if that program's caller dies.

        Args:
            lease_id: The lease.
            visit: Takes the holder's place.
            files: Text by file name.

        Returns:
            The folder of the files.

        Raises:
            ConfigError: If the state folder cannot be written.
        """
        for name, text in files.items():
            self._write(self._folder(lease_id, visit), name, text)
        return self._folder(lease_id, visit)

    def key(self, lease_id: str, holder: str) -> str | None:
        """The private key of a lease; None when it is not here."""
        path = self._folder(lease_id, holder) / "key"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def records(self) -> list[LeaseRecord]:
        """All records that can be read; a broken one is no reason to fail, since the truth is elsewhere."""
        found = (_read(path) for path in sorted(self._leases.glob("*/*/lease.json")))
        return [record for record in found if record is not None]

    def set_machine(self, lease_id: str, holder: str, machine_id: str) -> None:
        """Add the provider's id to a record."""
        record = _read(self._folder(lease_id, holder) / "lease.json")
        if record is not None:
            self.save(replace(record, machine_id=machine_id))

    def forget(self, lease_id: str, holder: str | None = None) -> None:
        """Remove record and key of a lease that is proven gone.

        Args:
            lease_id: The lease.
            holder: Whose; None for every holder's.
        """
        lease_folder = self._leases / lease_id
        for folder in lease_folder.glob("*") if holder is None else [lease_folder / holder]:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another holder's folder is still in it, or it never was
            lease_folder.rmdir()

    def lease_ids(self) -> list[str]:
        """Every lease that has left something here, also where its record cannot be read."""
        return sorted(path.name for path in self._leases.iterdir()) if self._leases.is_dir() else []

    def note_cleanup(self, at: datetime) -> None:
        """Write down that a cleanup ran through.

        Args:
            at: When, timezone-aware.

        Raises:
            ConfigError: If the state folder cannot be written.
        """
        self._write(self._root, "last-cleanup", at.isoformat())

    def last_cleanup(self) -> datetime | None:
        """When a cleanup last ran through from here; None when that is not known."""
        try:
            return datetime.fromisoformat((self._root / "last-cleanup").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _folder(self, lease_id: str, holder: str) -> Path:
        return self._leases / lease_id / holder

    def _write(self, folder: Path, name: str, text: str) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(folder / name, text)
        except OSError as error:
            raise ConfigError(
                f"cannot write the state folder {folder}",
                details=str(error),
                resolution="free some space, or set GPU_RUNNER_STATE_DIR to a folder that can be written",
            ) from error


def _read(path: Path) -> LeaseRecord | None:
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # whatever stands there
        return None


def _parse(document: dict[str, Any]) -> LeaseRecord:
    lease = document.pop("lease")
    lease["on_controller_loss"] = OnControllerLoss(lease["on_controller_loss"])
    document["started_at"] = datetime.fromisoformat(document["started_at"])
    return LeaseRecord(lease=Lease(**lease), **document)
