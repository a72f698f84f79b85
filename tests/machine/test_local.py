"""What is particular to provider ``local``: sessions, limits, GPUs, reboots, spoilt folders, interrupted callers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.clock import SystemClock
from provisioner.errors import AuthError, ConfigError, GpuRunnerError, LeaseHeldError, NotFoundError, RefusedError
from provisioner.models import Expect, MachineState, Scope
from provisioner.providers import registry
from provisioner.providers.base import AccessSource, OfferSource
from provisioner.providers.local import LocalProvider, cgroups
from provisioner.providers.local.folder import read_json, remove_tree, write_json
from provisioner.providers.local.gpus import model_name
from provisioner.providers.local.tags import Tags
from tests.contract.provider_contract import connect, ssh, ssh_keys, wait_for
from tests.machine.local import CPU, Box, box
from tests.tools import require

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sshd", "paramiko"])
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    if request.param == "sshd":
        require("sshd")
    else:
        monkeypatch.setenv("GPU_RUNNER_LOCAL_SSHD", "paramiko")
    with box(tmp_path / "machines") as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Box]:
    with box(tmp_path / "machines") as made:
        yield made


class ShiftedClock(SystemClock):
    """A clock some seconds ahead, as if time had passed."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def elapsed_s(self) -> float:
        return super().elapsed_s() + self._ahead_s


def test_it_is_what_the_registry_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_RUNNER_LOCAL_DIR", str(tmp_path))
    provider = registry.create("local", SystemClock())
    assert isinstance(provider, OfferSource)
    assert isinstance(provider, AccessSource)
    assert provider.traits.poweroff_ends == {"compute", "disk", "address", "quota"}
    assert [offer.price_usd_hour for offer in provider.offers() if offer.instance_type == "cpu"] == [0.0]


def test_a_session_has_the_machine_s_home_and_nothing_of_the_controller_s(
    here: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROLLER_SECRET", "hunter2")
    machine = here.launch()
    _, output, _ = ssh(machine, "pwd; env; ps -o args= -p $PPID")
    folder = here.folder(machine)
    assert output.startswith(f"{folder.home}\n".encode())
    lines = output.decode().splitlines()
    assert f"HOME={folder.home}" in lines
    assert f"TMPDIR={folder.tmp}" in lines  # so that temporary files go with the machine
    assert folder.tmp.is_dir()
    assert f"PATH={os.environ['PATH']}" in lines
    assert f"GPU_RUNNER_LEASE={machine.ref.lease_id}" in lines
    assert f"GPU_RUNNER_MACHINE={folder.path}" in lines
    assert {"CUDA_VISIBLE_DEVICES=", "NVIDIA_VISIBLE_DEVICES=void"} <= set(lines)
    assert b"hunter2" not in output
    assert b"PYTHONPATH" not in output
    assert b"hunter2" not in Path(f"/proc/{here.init_pid(machine)}/environ").read_bytes()


def test_bytes_pass_unchanged_and_so_does_the_exit_status(here: Box) -> None:
    machine = here.launch()
    data = bytes(range(256)) * 12_000
    assert ssh(machine, "cat", data=data)[:2] == (0, data)
    status, output, _ = ssh(machine, "echo out; echo err >&2; exit 41")
    assert (status, sorted(output.split())) == (41, [b"err", b"out"])
    assert ssh(machine, 'printf "%s|" "$0" "a  b" \'$HOME\' "*"')[1].endswith(b"a  b|$HOME|*|")


def test_a_terminal(here: Box) -> None:
    with connect(here.launch()) as transport:
        channel = transport.open_session()
        channel.get_pty("vt100", 101, 33)
        channel.exec_command("tty; stty size; echo $TERM; read line; echo got $line; exit 5")
        channel.sendall(b"typed\n")
        output = b""
        while chunk := channel.recv(4096):
            output += chunk
        assert channel.recv_exit_status() == 5
    words = output.removeprefix(b"typed").split()  # the terminal's echo may come first
    assert words[0].startswith(b"/dev/pts/")
    assert words[1:4] == [b"33", b"101", b"vt100"]
    assert words[-2:] == [b"got", b"typed"]


def test_an_interactive_shell(here: Box) -> None:
    with connect(here.launch()) as transport:
        channel = transport.open_session()
        channel.get_pty()
        channel.invoke_shell()
        channel.sendall(b"echo $((40+2))-ok; exit 6\n")
        output = b""
        while chunk := channel.recv(4096):
            output += chunk
        assert channel.recv_exit_status() == 6
    assert b"42-ok" in output


def test_a_key_that_was_not_let_in(here: Box) -> None:
    import paramiko
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    machine = here.launch()
    assert machine.endpoint is not None
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    import io

    key = paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode()))

    def login() -> None:
        assert machine.endpoint is not None
        transport = paramiko.Transport((machine.endpoint.host, machine.endpoint.port))
        try:
            transport.connect(username=machine.endpoint.user, pkey=key)
        finally:
            transport.close()

    with pytest.raises(paramiko.AuthenticationException):
        login()
    for _ in range(2):
        here.provider.grant_access(machine.ref, public.decode())
    login()
    assert ssh(machine, "true")[0] == 0
    assert len(here.folder(machine).authorized_keys.read_text().splitlines()) == 2


def test_many_channels_on_one_connection(here: Box) -> None:
    with connect(here.launch()) as transport:
        channels = [transport.open_session() for _ in range(20)]
        for number, channel in enumerate(channels):
            channel.exec_command(f"echo {number}")
        assert [channel.recv(100) for channel in channels] == [f"{n}\n".encode() for n in range(20)]


def test_limits_of_the_offer_become_limits_of_the_machine(plain: Box) -> None:
    groups = cgroups.create("gpu-runner-probe", cgroups.Limits())
    for path in groups:
        cgroups.remove(path)
    limits = {("memory", "memory.limit_in_bytes"): 256 << 20, ("cpu", "cpu.cfs_quota_us"): 100_000}
    limits |= {("memory", "memory.max"): 256 << 20}
    offer = replace(CPU, memory_gib=0.25, vcpus=1)
    machine = plain.wait_running(plain.provider.launch(plain.intent(offer=offer)))
    state = read_json(plain.folder(machine).state_file) or {}
    assert len(state["cgroups"]) == len(groups)
    seen = {
        file: int(Path(path, file).read_text())
        for path in state["cgroups"]
        for (_, file) in limits
        if Path(path, file).exists()
    }
    if not seen:
        pytest.skip("no cgroup controllers can be set here")
    assert seen.items() <= {file: value for (_, file), value in limits.items()}.items()
    status, output, _ = ssh(machine, f"{sys.executable} -c 'print(len(bytearray(1 << 29)))'")
    if {"memory.limit_in_bytes", "memory.max"} & set(seen):
        assert status != 0, output
        assert plain.stays(machine, 0.5)  # the guard is outside and lives


def test_ages_follow_the_clock_that_was_given(tmp_path: Path) -> None:
    with box(tmp_path / "machines") as here:
        machine = here.launch()
        later = LocalProvider(clock=ShiftedClock(3600.0), root=here.root)
        told = later.describe(machine.ref)
        assert told.age_s is not None
        assert 3600 <= told.age_s < 3660
        left_s = told.hard_deadline_in_s()
        assert left_s is not None
        assert left_s < 0


def test_a_reboot_stops_a_machine_and_its_folder_is_found(plain: Box) -> None:
    machine = plain.launch()
    os.kill(plain.init_pid(machine), signal.SIGKILL)
    tags = read_json(plain.folder(machine).tags_file) or {}
    write_json(plain.folder(machine).tags_file, tags | {"boot_id": "another"})
    told = plain.provider.describe(machine.ref)
    assert (told.state, told.reason, told.alive) == (MachineState.STOPPED, "the host was rebooted", True)
    left_s = told.hard_deadline_in_s()
    assert left_s is not None
    assert left_s <= 0
    plain.terminate(machine)
    assert plain.left() == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 99}', '{"version": 1, "lease": 3}'])
def test_unreadable_tags_are_no_reason_to_forget_a_machine(plain: Box, content: str) -> None:
    machine = plain.launch()
    plain.folder(machine).tags_file.write_text(content)
    (told,) = plain.provider.inventory(Scope(machine.ref.lease_id)).machines
    assert (told.lease, told.ref.lease_id, told.state) == (None, None, MachineState.RUNNING)
    assert told.age_s is not None
    for expect in (Expect("gr-other"), Expect(machine.ref.lease_id, "me")):
        with pytest.raises(RefusedError):
            plain.provider.terminate(told.ref, expect)
    with pytest.raises(LeaseHeldError):
        plain.provider.launch(plain.intent(lease_id=str(machine.ref.lease_id)))
    plain.provider.terminate(told.ref, Expect(None))
    assert plain.left() == []


@pytest.mark.parametrize("name", ["", "x", "../x-1", "a/b-1", ".new-a-1", "x-0", "-1", "x-1\n", "\0-1"])
def test_names_that_could_lead_astray(plain: Box, name: str) -> None:
    ref = replace(plain.launch().ref, id=name)
    for call in (plain.provider.describe, lambda r: plain.provider.terminate(r, Expect(None))):
        with pytest.raises(ConfigError):
            call(ref)


@pytest.mark.parametrize(
    ("kind", "name"), [("folder", "gr-a-1"), ("folder", "../.gone-x-1-aa"), ("cgroup", "/sys/fs/cgroup"), ("x", "y")]
)
def test_only_residue_is_removed_as_residue(plain: Box, kind: str, name: str) -> None:
    plain.launch(lease_id="gr-a")
    with pytest.raises(ConfigError):
        plain.provider.remove_residue(name, kind)
    assert len(plain.provider.inventory(Scope()).machines) == 1


def test_a_process_number_used_again_is_left_alone(plain: Box) -> None:
    with subprocess.Popen(["sleep", "30"]) as innocent:
        plain.provider.remove_residue(f"{innocent.pid}@1", "process")
        assert innocent.poll() is None
        innocent.kill()


def test_a_root_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    with box(tmp_path / "machines") as here:
        here.root.mkdir(mode=0o777)
        here.root.chmod(0o777)
        with pytest.raises(AuthError):
            here.provider.launch(here.intent())
        here.root.chmod(0o700)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        LocalProvider(clock=SystemClock(), root=tmp_path / "file" / "x").launch(Box(tmp_path).intent())
    assert "GPU_RUNNER_LOCAL_DIR" in refused.value.resolution


@pytest.mark.parametrize("name", ["with space", "it's", "ünï", "$HOME;x"])
def test_roots_with_strange_names(here: Box, tmp_path: Path, name: str) -> None:
    with box(tmp_path / name) as there:
        machine = there.launch()
        assert ssh(machine, "pwd")[:2] == (0, os.fsencode(f"{tmp_path}/{name}/{machine.ref.id}/home\n"))
    assert here.left() == []


def test_a_root_that_sshd_could_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Box(tmp_path / 'a"b').launch()


def test_a_launch_whose_caller_died_before_the_first_process(plain: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    intent = plain.intent()
    with monkeypatch.context() as patch:
        patch.setattr(plain.provider, "_ensure_started", lambda _: None)
        ref = plain.provider.launch(intent)
    told = plain.provider.describe(ref)
    assert (told.state, told.lease) == (MachineState.PENDING, intent.lease)
    assert plain.provider.launch(intent) == ref
    plain.wait_running(ref)


def test_a_machine_that_ended_by_itself_does_not_block_its_lease(tmp_path: Path) -> None:
    with box(tmp_path / "machines", linger_s=60.0) as here:
        first = here.launch(lease_id="gr-again", fuse_s=0.5)

        def ended() -> bool:
            return here.provider.describe(first.ref).state is MachineState.TERMINATED

        assert wait_for(ended, 10.0)
        intent = here.intent(lease_id="gr-again", holder="somebody-new")
        machine = here.wait_running(here.provider.launch(intent))
        assert machine.lease == intent.lease
        assert machine.ref == first.ref


def test_a_machine_that_cannot_start_says_why(plain: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_RUNNER_LOCAL_SSHD", "paramiko")
    slow = LocalProvider(clock=SystemClock(), root=plain.root, linger_s=20.0)
    intent = plain.intent()
    broken = replace(intent, ssh=replace(ssh_keys(), host_private_key="no key"))
    ref = slow.launch(broken)

    def failed() -> GpuRunnerError | None:
        return slow.describe(ref).failure

    failure = wait_for(failed, 20.0)
    assert failure is not None
    assert "SSH server did not start" in failure.details


INTERRUPTED = """
    import pickle, sys
    from pathlib import Path
    from provisioner.clock import SystemClock
    from provisioner.providers.local import LocalProvider
    import provisioner.providers.local.provider, provisioner.providers.local.gpus
    verb, arguments = pickle.load(sys.stdin.buffer)
    provider = LocalProvider(clock=SystemClock(), root=Path(sys.argv[1]), linger_s=0.0)
    print("ready", flush=True)
    getattr(provider, verb)(*arguments)
    print("done", flush=True)
"""


def interrupted(here: Box, after_s: float, verb: str, *arguments: Any) -> None:
    """Call the provider from another process and kill that after a moment."""
    import pickle

    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(here.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        caller.stdin.write(pickle.dumps((verb, arguments)))
        caller.stdin.close()
        assert caller.stdout.readline() == b"ready\n"
        time.sleep(after_s)
        caller.kill()


@pytest.mark.parametrize("step", range(8))
def test_a_launch_killed_in_the_middle_leaves_nothing_that_is_not_found(plain: Box, step: int) -> None:
    intent = plain.intent()
    interrupted(plain, step * 0.0015, "launch", intent)
    inventory = plain.provider.inventory(Scope(intent.lease.id))
    assert not inventory.unread
    for machine in inventory.machines:
        assert machine.lease == intent.lease
        plain.provider.terminate(machine.ref, Expect(intent.lease.id, "me"))
    for residue in inventory.residue:
        plain.provider.remove_residue(residue.id, residue.kind)
    assert wait_for(lambda: not plain.left(), 5.0), plain.left()


@pytest.mark.parametrize("step", range(8))
def test_a_terminate_killed_in_the_middle_can_be_repeated(plain: Box, step: int) -> None:
    machine = plain.launch()
    plain.daemon(machine)
    interrupted(plain, step * 0.004, "terminate", machine.ref, Expect(machine.ref.lease_id))
    inventory = plain.provider.inventory(Scope(machine.ref.lease_id))
    assert not inventory.unread
    for found in inventory.machines:
        assert found.alive
    for residue in inventory.residue:
        plain.provider.remove_residue(residue.id, residue.kind)
    plain.terminate(machine)
    assert wait_for(lambda: not plain.left(), 5.0), plain.left()
    with pytest.raises(NotFoundError):
        plain.provider.describe(machine.ref)


def test_a_home_full_of_strange_things_is_removed(plain: Box) -> None:
    machine = plain.launch()
    script = r"""
        mkdir -p a/b/c; touch "$(printf 'a/new\nline')" "$(printf 'a/\377')"; ln -s / root; ln -s nowhere lost
        mkfifo pipe; chmod 000 a/b; chmod 500 a
        python3 - <<'END'
import os, socket
socket.socket(socket.AF_UNIX).bind("s")
for _ in range(600):
    os.mkdir("deep-folder-name"); os.chdir("deep-folder-name")
END
    """
    assert ssh(machine, script)[0] == 0
    plain.terminate(machine)
    assert plain.left() == []
    assert Path("/usr").exists()


def test_removing_a_tree_twice_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for number in range(500):
        (tmp_path / "tree" / str(number % 7) / str(number)).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remove_tree, [tmp_path / "tree"] * 4))
    assert not (tmp_path / "tree").exists()


def test_tags_survive_the_round_trip(plain: Box) -> None:
    intent = plain.intent(labels={"a": "b"}, run="x/1")
    plain.provider.launch(intent)
    data = read_json(plain.root / intent.name / "machine.json")
    tags = Tags.from_json(json.loads(json.dumps(data)))
    assert tags is not None
    assert (tags.lease, tags.offer, tags.attempt) == (intent.lease, intent.offer, intent.attempt)


@pytest.mark.parametrize(
    ("name", "memory_gib", "model"),
    [
        ("NVIDIA A10G", 22.5, "A10G"),
        ("Tesla T4", 15.0, "T4"),
        ("NVIDIA T4G", 15.0, "T4g"),
        ("NVIDIA L4", 22.5, "L4"),
        ("NVIDIA L40S", 45.0, "L40S"),
        ("Tesla V100-SXM2-16GB", 16.0, "V100"),
        ("Tesla V100-SXM2-32GB", 32.0, "V100-32GB"),
        ("NVIDIA A100-SXM4-40GB", 40.0, "A100"),
        ("NVIDIA A100-SXM4-80GB", 80.0, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", 80.0, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 80.0, "H100"),
        ("NVIDIA H100 NVL", 94.0, "H100-NVL"),
        ("NVIDIA H200", 141.0, "H200"),
        ("NVIDIA B200", 180.0, "B200"),
        ("NVIDIA GeForce RTX 4090", 24.0, "RTX4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95.0, "RTXPRO6000"),
        ("NVIDIA RTX A6000", 48.0, "RTXA6000"),
    ],
)
def test_models_have_the_names_of_the_catalog(name: str, memory_gib: float, model: str) -> None:
    assert model_name(name, memory_gib) == model


FAKE_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int count(void) { const char *n = getenv("FAKE_GPUS"); return n ? atoi(n) : 0; }
int nvmlInit_v2(void) { return count() < 0 ? 9 : 0; }
int nvmlInitWithFlags(unsigned f) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int r) { return r == 9 ? "Driver Not Loaded" : "?"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count(); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(size_t)(i + 1); return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { snprintf(s, n, "NVIDIA A100-SXM4-80GB"); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { snprintf(s, n, "GPU-fake-%zu", (size_t)d); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory *m) { m->total = 80ull << 30; m->free = m->total; m->used = 0; return 0; }
"""
ON_GPUS = """
    import json, sys
    from dataclasses import replace
    from pathlib import Path
    from provisioner.errors import GpuRunnerError
    from tests.contract.provider_contract import ssh
    from tests.machine.local import Box
    from provisioner.models import Expect, Offer
    from provisioner.providers.local.folder import read_json
    here = Box(Path(sys.argv[1]))
    offers = {o.instance_type: o for o in here.provider.offers()}
    said = {"offers": {k: [o.gpu, o.gpu_count, o.gpu_memory_gib] for k, o in offers.items()}, "errors": {}}
    def attempt(name, lease, offer):
        try:
            return here.wait_running(here.provider.launch(here.intent(lease_id=lease, offer=offer)))
        except GpuRunnerError as error:
            said["errors"][name] = [type(error).__name__, error.brief, error.details]
    name = "gpu-a100-80gb-x1"
    one = offers.get(name) or Offer("local", "localhost", name, gpu="A100-80GB", gpu_count=1)
    a = attempt("a", "gr-a", one)
    if a:
        b = attempt("b", "gr-b", one)
        attempt("third", "gr-c", one)
        attempt("other", "gr-d", replace(one, gpu="H100", gpu_count=1))
        attempt("many", "gr-e", replace(one, gpu_count=9))
        said["seen"] = [ssh(m, "echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES")[1].decode() for m in (a, b)]
        here.terminate(a)
        c = attempt("after", "gr-f", one)
        said["again"] = ssh(c, "echo $CUDA_VISIBLE_DEVICES")[1].decode()
    said["folders"] = sorted(p.name for p in here.root.glob("gr-*")) if here.root.exists() else []
    here.close()
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "nvml.c").write_text(FAKE_DRIVER)
    compiler = require("gcc")
    command = [compiler, "-shared", "-fPIC", "-w", "-o", str(folder / "libnvidia-ml.so.1"), str(folder / "nvml.c")]
    subprocess.run(command, check=True, timeout=60)
    return folder


def on_gpus(driver: Path, root: Path, count: int) -> dict[str, Any]:
    """Run the real bindings over a driver library of our own, in a process that loads it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_GPUS), str(root)],
        cwd=REPOSITORY,
        env={**os.environ, "LD_LIBRARY_PATH": str(driver), "FAKE_GPUS": str(count)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_gpus_are_offered_handed_out_once_and_freed(driver: Path, tmp_path: Path) -> None:
    said = on_gpus(driver, tmp_path / "machines", 2)
    assert said["offers"]["gpu-a100-80gb-x1"] == ["A100-80GB", 1, 80.0]
    assert said["offers"]["gpu-a100-80gb-x2"] == ["A100-80GB", 2, 80.0]
    assert said["offers"]["cpu"] == [None, 0, None]
    assert said["seen"] == ["GPU-fake-1 GPU-fake-1\n", "GPU-fake-2 GPU-fake-2\n"]
    assert said["again"] == "GPU-fake-1\n"
    kind, _, details = said["errors"].pop("third")
    assert (kind, details) == ("CapacityError", "the others are held by gr-a, gr-b")
    assert said["errors"].pop("other")[0] == "ConfigError"
    kind, brief, details = said["errors"].pop("many")
    assert (kind, brief, details) == ("ConfigError", "this host has no 9 x A100-80GB", "it has 2 x A100-80GB")
    assert said["errors"] == {}
    assert said["folders"] == ["gr-b-1", "gr-f-1"]


@pytest.mark.parametrize("count", [0, -1])
def test_no_gpu_or_no_driver_is_a_clear_error_before_anything_is_made(driver: Path, tmp_path: Path, count: int) -> None:
    said = on_gpus(driver, tmp_path / "machines", count)
    assert list(said["offers"]) == ["cpu"]
    kind, brief, details = said["errors"]["a"]
    assert (kind, brief) == ("ConfigError", "this host has no 1 x A100-80GB")
    assert "no GPU" in details
    assert not (tmp_path / "machines").exists()
