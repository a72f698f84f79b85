"""Provider ``local`` keeps the contract: under OpenSSH's server, under our own, and without cgroups."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from provisioner.clock import SystemClock
from provisioner.models import Expect, Offer
from provisioner.providers.base import Provider
from provisioner.providers.local import LocalProvider, cgroups, processes
from provisioner.providers.local.folder import Root
from provisioner.providers.local.view import group_prefix
from tests.contract.provider_contract import ProviderContract, World
from tests.tools import require


def make_local(root: Path) -> Provider:
    return LocalProvider(clock=SystemClock(), root=root)


class LocalWorld(World):
    """A root folder of its own, and all processes and cgroups that name it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def factory(self) -> Callable[[], Provider]:
        return partial(make_local, self.root)

    def offer(self) -> Offer:
        return Offer(provider="local", region="localhost", instance_type="cpu", price_usd_hour=0.0)

    def leave_residue(self, lease_id: str) -> Sequence[str]:
        provider = self.make_provider()
        provider.terminate(provider.launch(self.make_intent(lease_id)), Expect(lease_id))  # makes the root
        for name in (f".new-{lease_id}-1-0a1b", f".gone-{lease_id}-2-2c3d"):
            (self.root / name / "home" / "sealed").mkdir(parents=True)
            (self.root / name / "home" / "sealed" / "file").write_text("x")
            (self.root / name / "home" / "sealed").chmod(0)
        mark = {"GPU_RUNNER_MACHINE": str(self.root / f"{lease_id}-3"), "PATH": os.environ["PATH"]}
        self._started.append(subprocess.Popen(["sleep", "600"], env=mark, start_new_session=True))
        groups = cgroups.create(f"{self.prefix}{lease_id}-4", cgroups.Limits())
        return ("folder", "process", "cgroup") if groups else ("folder", "process")

    @contextlib.contextmanager
    def unreadable(self) -> Iterator[None]:
        """Others may write to the root, so nothing in it can be believed. (No mode keeps root from reading.)"""
        self.root.chmod(0o777)
        try:
            yield
        finally:
            self.root.chmod(0o700)

    @property
    def prefix(self) -> str:
        return group_prefix(Root(self.root))

    def left(self) -> list[str]:
        for process in self._started:
            process.poll()
        folders = [str(path) for path in self.root.iterdir()] if self.root.exists() else []
        found = processes.strays(str(self.root), self.prefix).values()
        groups = [path for paths in cgroups.find(self.prefix).values() for path in paths]
        return folders + [f"process {process.pid}" for members in found for process in members] + groups


class TestLocalWithOpenSsh(ProviderContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> LocalWorld:
        require("sshd")
        return LocalWorld(tmp_path / "machines")


class TestLocalWithParamiko(ProviderContract):
    @pytest.fixture
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalWorld:
        monkeypatch.setenv("GPU_RUNNER_LOCAL_SSHD", "paramiko")
        return LocalWorld(tmp_path / "machines")


class TestLocalWithoutCgroups(ProviderContract):
    @pytest.fixture
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalWorld:
        require("sshd")
        monkeypatch.setenv("GPU_RUNNER_LOCAL_CGROUPS", "none")
        return LocalWorld(tmp_path / "machines")
