"""The job over a real SSH connection, also over one that breaks again and again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.clock import SystemClock
from provisioner.errors import BootError, CancelledError, ConfigError, GpuRunnerError, NotFoundError
from provisioner.remote.job import JobClient, JobRunningError, JobSpec, JobState
from provisioner.remote.link import Link
from provisioner.remote.session import KeepAlive
from tests.proxy import Proxy, proxy_to
from tests.sshd import PrivateSshd, private_sshd

CLOCK = SystemClock()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[PrivateSshd]:
    with private_sshd(tmp_path) as server:
        yield server
        _end_jobs(server.home)


def _end_jobs(home: Path) -> None:
    """Kill whatever a failed test left running, found by its home folder."""
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"HOME={home}".encode() in (path / "environ").read_bytes().split(b"\0"):
                os.kill(int(path.name), signal.SIGKILL)


@pytest.fixture
def proxy(sshd: PrivateSshd) -> Iterator[Proxy]:
    with proxy_to(sshd.port) as made:
        yield made


@pytest.fixture
def link(sshd: PrivateSshd, proxy: Proxy) -> Iterator[Link]:
    endpoint = replace(sshd.endpoint, port=proxy.port)
    made = Link(endpoint, sshd.private_key, clock=CLOCK, reconnect_for_s=20, keep_alive=KeepAlive(0.2, 1.5))
    yield made
    made.close()


@pytest.fixture
def job(link: Link) -> JobClient:
    client = JobClient(link)
    client.install()
    return client


def spec(script: str, **more: object) -> JobSpec:
    return replace(JobSpec(token="one", argv=("/bin/sh", "-c", script)), **more)  # type: ignore[arg-type]  # free-form


def test_install_puts_the_programs_in_place_once(sshd: PrivateSshd, link: Link) -> None:
    client = JobClient(link)
    found = client.install()
    assert found.version >= (3, 8)
    assert found.home == str(sshd.home)
    folder = sshd.home / ".gpu-runner"
    supervisor = folder / "bin" / "supervisor.py"
    assert supervisor.read_bytes() == Path("templates/supervisor.py").read_bytes()
    assert (folder / "bin" / "tarstream.py").read_bytes() == Path("provisioner/remote/tarstream.py").read_bytes()
    assert folder.stat().st_mode & 0o077 == 0
    before = supervisor.stat().st_mtime_ns
    client.install()
    assert supervisor.stat().st_mtime_ns == before
    supervisor.write_bytes(b"damaged")
    client.install()
    assert supervisor.read_bytes() == Path("templates/supervisor.py").read_bytes()


def test_a_machine_without_python(link: Link) -> None:
    with pytest.raises(BootError, match="no python3"):
        JobClient(link, python="no-such-python3").install()


def test_a_whole_job(job: JobClient) -> None:
    log = bytearray()
    begun = job.start(
        spec("echo $A $B; exit 3", env={"A": "1"}, meta={"artifacts": ["*.json"]}, setup=("echo set up",)),
        {"B": "geheim"},
    )
    status = job.follow(log.extend)
    assert begun
    assert bytes(log) == b"set up\n1 ***\n"
    assert (status.state, status.exit_code, status.meta) == (JobState.ENDED, 3, {"artifacts": ["*.json"]})
    assert status.log_bytes == len(log)
    assert job.status() == status
    assert not job.start(spec("echo again"))


def test_no_job(job: JobClient) -> None:
    assert job.status().state is JobState.NONE
    assert not job.status().running
    assert job.stop(1).state is JobState.NONE
    with pytest.raises(NotFoundError):
        job.follow(lambda _: None)
    with pytest.raises(ConfigError):
        job.start(JobSpec(token="one", argv=()))


def test_one_job_at_a_time(job: JobClient) -> None:
    job.start(spec("sleep 30"))
    assert job.status().running
    with pytest.raises(JobRunningError):
        job.start(spec("true", token="two"))
    status = job.stop(5)
    assert (status.state, status.stopped, status.exit_code) == (JobState.ENDED, True, 143)


def test_the_job_outlives_its_connection(sshd: PrivateSshd, job: JobClient) -> None:
    job.start(spec("sleep 0.6; echo alive"))
    sshd.drop_connections()
    log = bytearray()
    assert job.follow(log.extend).exit_code == 0
    assert bytes(log) == b"alive\n"


def test_a_log_followed_over_a_connection_that_keeps_breaking_is_exact(job: JobClient, proxy: Proxy) -> None:
    script = (
        "import os, random, time\n"
        "r = random.Random(1)\n"
        "for n in range(400):\n"
        "    os.write(1, b'%08d ' % n + r.randbytes(r.choice([3, 5000, 70000])))\n"
        "    time.sleep(0.01)\n"
    )
    rng = random.Random(1)  # noqa: S311 - repeatable, not secret
    expected = b"".join(b"%08d " % n + rng.randbytes(rng.choice([3, 5000, 70000])) for n in range(400))
    job.start(replace(spec(""), argv=("python3", "-c", script)))
    over = threading.Event()
    cuts = [0]
    cutter = threading.Thread(target=_cut_at_random, args=(proxy, over, cuts))
    cutter.start()
    log = bytearray()
    try:
        status = job.follow(log.extend)
    finally:
        over.set()
        cutter.join()
    assert cuts[0] >= 10
    assert hashlib.sha256(log).digest() == hashlib.sha256(expected).digest()
    assert (status.exit_code, status.log_bytes) == (0, len(expected))


def _cut_at_random(proxy: Proxy, over: threading.Event, cuts: list[int]) -> None:
    rng = random.Random(2)  # noqa: S311 - repeatable, not secret
    while not over.wait(rng.uniform(0.01, 0.5)):
        cuts[0] += proxy.cut() > 0


def test_follow_from_an_offset_and_over_a_stall(job: JobClient, proxy: Proxy) -> None:
    job.start(spec("echo 0123456789; sleep 3; echo end"))
    log = bytearray()
    threading.Timer(0.5, proxy.stall).start()
    flow = threading.Timer(3.5, proxy.flow)
    flow.start()
    status = job.follow(log.extend, 4)
    flow.join()
    assert bytes(log) == b"456789\nend\n"
    assert status.exit_code == 0


def test_calls_survive_cuts(job: JobClient, proxy: Proxy) -> None:
    job.start(spec("sleep 60"))
    for _ in range(5):
        proxy.cut()
        assert job.status().running
    proxy.cut()
    assert not job.start(spec("sleep 60"))
    proxy.cut()
    assert job.stop(1).stopped


def test_an_abort_ends_a_follow(job: JobClient, link: Link) -> None:
    job.start(spec("echo x; sleep 60"))
    threading.Timer(0.5, link.abort).start()
    began = time.monotonic()
    with pytest.raises(CancelledError):
        job.follow(lambda _: None)
    assert time.monotonic() - began < 3


def test_a_lost_job_is_told(sshd: PrivateSshd, job: JobClient) -> None:
    job.start(spec("echo x; sleep 60"))
    lock = (sshd.home / ".gpu-runner" / "job" / "lock").read_text()
    os.kill(int(lock.rpartition(":")[2].strip(" }")), signal.SIGKILL)
    assert job.follow(lambda _: None).state is JobState.LOST
    assert job.stop(1).stopped


def test_an_answer_that_makes_no_sense(sshd: PrivateSshd, job: JobClient) -> None:
    (sshd.home / ".gpu-runner" / "bin" / "supervisor.py").write_text("print('what?')")
    with pytest.raises(GpuRunnerError, match="no sense"):
        job.status()


def test_a_whole_short_job_takes_few_round_trips(sshd: PrivateSshd) -> None:
    began = time.monotonic()
    link = Link(sshd.endpoint, sshd.private_key, clock=CLOCK)
    client = JobClient(link)
    client.install()
    client.start(spec("true"))
    assert client.follow(lambda _: None).exit_code == 0
    link.close()
    assert time.monotonic() - began < 5  # about 0.4 s on a quiet machine
