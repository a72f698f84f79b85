"""Files both ways against scp and rsync, over a private OpenSSH server on the loopback address."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _bench_table import Figure, against

from provisioner.clock import SystemClock
from provisioner.remote import transfer
from provisioner.remote.link import Link
from tests.sshd import PrivateSshd, private_sshd

_BIG_MIB = 1024
_SMALL_FILES = 20_000
_SMALL_BYTES = 4096
_NEEDED_BYTES = 4 << 30


def transfers() -> Iterator[Figure]:
    """1 GiB down, 20,000 small files down, 1 GiB up."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _NEEDED_BYTES
    place = tempfile.TemporaryDirectory(prefix="gpu-runner-bench-", dir=memory if roomy else None)
    with place as folder, private_sshd(Path(folder) / "sshd") as server:
        yield from _Bench(server, Path(folder)).figures()


class _Bench:
    def __init__(self, server: PrivateSshd, folder: Path) -> None:
        self._server = server
        self._source = server.home / "work"
        self._there = server.home / "there"
        self._here = folder / "here"

    def figures(self) -> Iterator[Figure]:
        big = self._source / "big" / "big.bin"
        _fill(big, _BIG_MIB << 20)
        host = "127.0.0.1"
        yield against(
            "download of 1 GiB",
            lambda: self._download("big"),
            peer="scp",
            theirs=lambda: self._run("scp", "-q", *self._ssh("-P"), f"{host}:{big}", str(self._here)),
            limit=1.1,
            clean=self._clean,
        )
        yield against(
            "upload of 1 GiB",
            lambda: self._upload(big.parent),
            peer="scp",
            theirs=lambda: self._run("scp", "-q", *self._ssh("-P"), str(big), f"{host}:{self._there}"),
            limit=1.3,
            clean=self._clean,
        )
        shutil.rmtree(big.parent)
        small = self._source / "small"
        for number in range(_SMALL_FILES):
            _fill(small / f"{number % 100:02}" / f"{number}.bin", _SMALL_BYTES)
        yield against(
            "download of 20,000 files of 4 KB",
            lambda: self._download("small"),
            peer="rsync -a",
            theirs=lambda: self._run(
                "rsync", "-a", "-e", f"ssh {' '.join(self._ssh('-p'))}", f"{host}:{small}", str(self._here)
            ),
            limit=1.2,
            clean=self._clean,
        )

    def _ssh(self, port_option: str) -> list[str]:
        return [*self._server.ssh_options(), port_option, str(self._server.port)]

    def _run(self, *command: str) -> None:
        self._here.mkdir(exist_ok=True)
        self._there.mkdir(exist_ok=True)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def _link(self) -> Link:
        return Link(self._server.endpoint, self._server.private_key, clock=SystemClock())

    def _download(self, glob: str) -> None:
        link = self._link()
        transfer.download(link, [glob], root="~/work", output=self._here, known=transfer.Collected(), final=True)
        link.close()

    def _upload(self, folder: Path) -> None:
        link = self._link()
        transfer.upload(link, transfer.plan_upload(folder), "~/there")
        link.close()

    def _clean(self) -> None:
        for folder in (self._here, self._there):
            shutil.rmtree(folder, ignore_errors=True)


def _fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    block = os.urandom(min(size, 1 << 20))
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
