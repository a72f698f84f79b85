"""The guard of a real local machine: it ends at every limit and leaves no process, folder or cgroup."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.models import Machine, MachineState, OnControllerLoss, Scope
from provisioner.providers.local import processes
from provisioner.resources import template_path
from tests.contract.provider_contract import connect, ssh, wait_for
from tests.machine.local import Box, box
from tests.tools import require

# A guard looks every half second, a kill takes moments, and the tests share two cores with others.
SLACK_S = 8.0


@pytest.fixture(params=["cgroups", "no cgroups"])
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    require("sshd")
    if request.param == "no cgroups":
        monkeypatch.setenv("GPU_RUNNER_LOCAL_CGROUPS", "none")
    with box(tmp_path / "machines") as made:
        yield made


class Controller:
    """What a controller writes into the control folder."""

    def __init__(self, here: Box, machine: Machine) -> None:
        self._control = here.control(machine)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self._seq = 0

    def __enter__(self) -> Controller:  # noqa: PYI034  # Self is not in Python 3.10
        self._control.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            if self._control.is_dir():
                (self._control / "beat").write_text(f"{count}\n")
            self._stop.wait(0.2)

    def order(self, **order: Any) -> None:
        self._seq += 1
        document = {"seq": self._seq, "mode": "attached", "end_in_s": None, "collected": False} | order
        temporary = self._control / "orders.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self._control / "orders.json")
        assert wait_for(lambda: self.status().get("orders_seq") == self._seq, SLACK_S)

    def status(self) -> dict[str, Any]:
        path = self._control / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


def start_job(machine: Machine, home: Path, *argv: str, timeout_s: float | None = None) -> None:
    """Start a job under the real supervisor."""
    binaries = home / ".gpu-runner" / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    shutil.copy(template_path("supervisor.py"), binaries)
    spec: dict[str, Any] = {
        "token": "one",
        "argv": argv,
        "cwd": str(home),
        "env": {},
        "secrets": {},
        "timeout_s": timeout_s,
        "grace_s": 1.0,
        "job_dir": str(home / ".gpu-runner" / "job"),
    }
    status, output, _ = ssh(machine, "python3 ~/.gpu-runner/bin/supervisor.py start", data=json.dumps(spec).encode())
    assert status == 0, output


def job_state(home: Path) -> str:
    path = home / ".gpu-runner" / "job" / "status.json"
    return str(json.loads(path.read_text())["state"]) if path.exists() else "none"


STUBBORN = ("sh", "-c", "trap '' TERM; (setsid env -i sleep 777.{nonce} &) ; while :; do sleep 0.1; done")


def stubborn(here: Box) -> tuple[str, ...]:
    return tuple(part.format(nonce=here.nonce) for part in STUBBORN)


def test_fuse_when_nobody_checks_in(here: Box) -> None:
    machine = here.launch(fuse_s=2.0)
    here.daemon(machine)
    assert 2.0 <= here.ended_after_s(machine, 2 + SLACK_S) < 2 + SLACK_S


def test_hard_deadline_ends_a_stubborn_job_of_a_living_controller(here: Box) -> None:
    machine = here.launch(ttl_s=3.0)
    with Controller(here, machine) as controller:
        controller.order(end_in_s=500.0)  # nothing moves the hard one
        start_job(machine, here.folder(machine).home, *stubborn(here))
        here_before_s = here.ended_after_s(machine, 3 + SLACK_S)
    assert 3.0 <= here_before_s < 3 + SLACK_S


def test_soft_deadline_moves_and_then_ends_it(here: Box) -> None:
    machine = here.launch()
    with Controller(here, machine) as controller:
        controller.order(end_in_s=1.0)
        controller.order(end_in_s=3.0)
        ordered = time.monotonic()
        assert here.stays(machine, 1.5)
        here.ended_after_s(machine, 3 + SLACK_S)
        assert time.monotonic() - ordered >= 2.5


def test_controller_lost_ends_it(here: Box) -> None:
    machine = here.launch(heartbeat_timeout_s=1.5)
    with Controller(here, machine):
        start_job(machine, here.folder(machine).home, *stubborn(here))
        assert here.stays(machine, 2.0)
    lost = time.monotonic()
    here.ended_after_s(machine, 1.5 + SLACK_S)
    assert time.monotonic() - lost >= 1.0


def test_controller_lost_lets_the_job_finish_and_keeps_its_results_until_the_hard_deadline(here: Box) -> None:
    machine = here.launch(
        ttl_s=7.0, heartbeat_timeout_s=0.5, idle_timeout_s=0.5, on_controller_loss=OnControllerLoss.FINISH
    )
    home = here.folder(machine).home
    with Controller(here, machine):
        start_job(machine, home, "sh", "-c", "sleep 2; echo done > result")
    assert wait_for(lambda: job_state(home) == "ended", SLACK_S)
    assert here.stays(machine, 1.5)
    assert (home / "result").read_text() == "done\n"
    assert here.ended_after_s(machine, 7 + SLACK_S) >= 7.0


def test_idle_ends_it_only_without_session_job_and_waiting_results(here: Box) -> None:
    machine = here.launch(idle_timeout_s=1.0)
    home = here.folder(machine).home
    with Controller(here, machine) as controller, connect(machine):
        controller.order(mode="detached")
    with connect(machine):
        assert here.stays(machine, 1.8)
        start_job(machine, home, "sleep", "2")
    assert here.stays(machine, 1.5)
    assert wait_for(lambda: job_state(home) == "ended", SLACK_S)
    assert here.stays(machine, 2.0)
    (here.control(machine) / "orders.json").write_text(
        json.dumps({"seq": 99, "mode": "detached", "end_in_s": None, "collected": True})
    )
    here.ended_after_s(machine, 1 + SLACK_S)


def test_asked_by_a_signal(here: Box) -> None:
    machine = here.launch()
    here.daemon(machine)
    os.kill(here.init_pid(machine), signal.SIGTERM)
    here.ended_after_s(machine, SLACK_S)


def test_a_job_gets_its_grace_before_the_end(here: Box, tmp_path: Path) -> None:
    machine = here.launch(ttl_s=3.0)
    note = tmp_path / "note"
    script = f"trap 'echo saved > {note}; exit 0' TERM; while :; do sleep 0.1; done"
    with Controller(here, machine):
        start_job(machine, here.folder(machine).home, "sh", "-c", script)
        here.ended_after_s(machine, 3 + SLACK_S)
    assert note.read_text() == "saved\n"


def test_the_reason_can_be_read_for_a_while(tmp_path: Path) -> None:
    with box(tmp_path / "machines", linger_s=4.0) as here:
        machine = here.launch(fuse_s=1.0)

        def ended() -> Machine | None:
            told = here.provider.describe(machine.ref)
            return None if told.alive else told

        told = wait_for(ended, 1 + SLACK_S)
        assert told is not None
        assert (told.state, told.billing_stopped) == (MachineState.TERMINATED, True)
        assert told.reason.startswith("fuse: ")
        kept = {path.name for path in here.folder(machine).path.iterdir()}
        assert kept == {"machine.json", "state.json", "guard.lock"}
        (listed,) = here.provider.inventory(Scope()).machines
        assert listed == here.provider.describe(machine.ref) or listed.state is MachineState.TERMINATED
        here.ended_after_s(machine, 4 + SLACK_S)


def test_a_full_disk_keeps_no_machine_alive(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a small file system")
    try:
        with box(disk / "machines") as here:
            machine = here.launch(fuse_s=3.0)
            here.daemon(machine)
            assert ssh(machine, f"cat /dev/zero > {disk}/filler")[0] != 0
            status, output, _ = ssh(machine, "echo x > ~/no-room")
            assert status != 0, output
            here.ended_after_s(machine, 3 + SLACK_S)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_killed_guard_is_noticed_and_the_rest_is_found(here: Box) -> None:
    machine = here.launch()
    start_job(machine, here.folder(machine).home, *stubborn(here))
    with connect(machine):
        os.kill(here.init_pid(machine), signal.SIGKILL)

        def unknown() -> Machine | None:
            told = here.provider.describe(machine.ref)
            return told if told.state is MachineState.UNKNOWN else None

        told = wait_for(unknown, SLACK_S)
        assert told is not None
        assert "guard is dead" in told.reason
        assert told.alive
        assert not told.billing_stopped
        (listed,) = here.provider.inventory(Scope()).machines
        assert (listed.ref, listed.state) == (machine.ref, MachineState.UNKNOWN)
        here.terminate(machine)
    assert wait_for(lambda: not here.left(), SLACK_S), here.left()


def test_a_killed_guard_and_a_lost_folder(here: Box) -> None:
    machine = here.launch()
    start_job(machine, here.folder(machine).home, *stubborn(here))
    assert wait_for(here.hidden, SLACK_S)
    with connect(machine):  # the server's process for this connection lives, though its listener dies
        os.kill(here.init_pid(machine), signal.SIGKILL)
        shutil.rmtree(here.folder(machine).path)
        inventory = here.provider.inventory(Scope(machine.ref.lease_id))
        assert inventory.machines == ()
        assert "process" in {residue.kind for residue in inventory.residue}
        for residue in inventory.residue:
            here.provider.remove_residue(residue.id, residue.kind)
        wait_for(lambda: not here.left(), SLACK_S)
    assert here.left() == []
    assert here.provider.inventory(Scope()).residue == ()


def test_a_dead_guard_without_processes_is_stopped_and_goes(here: Box) -> None:
    machine = here.launch()
    os.kill(here.init_pid(machine), signal.SIGKILL)

    def stopped() -> Machine | None:
        told = here.provider.describe(machine.ref)
        return told if told.state is MachineState.STOPPED else None

    told = wait_for(stopped, SLACK_S)
    assert told is not None
    assert told.reason == "its guard died"
    here.terminate(machine)
    assert here.left() == []


def test_a_second_guard_steps_back(here: Box) -> None:
    machine = here.launch()
    command = [sys.executable, "-m", "provisioner.providers.local.init", str(here.folder(machine).path)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0
    assert here.stays(machine, 0.0)


def test_a_dead_ssh_server_comes_back_on_its_port(here: Box) -> None:
    machine = here.launch()
    here.daemon(machine)
    listeners = [p.pid for p in processes.all_processes().values() if p.parent == here.init_pid(machine)]
    servers = [pid for pid in listeners if Path(f"/proc/{pid}/comm").read_text().startswith("sshd")]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)

    def answers() -> bool:
        assert machine.endpoint is not None
        try:
            with socket.create_connection((machine.endpoint.host, machine.endpoint.port), timeout=1.0) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    assert wait_for(answers, SLACK_S)
    assert ssh(machine, "true")[0] == 0
    assert len(here.hidden()) == 2
