"""The job's supervisor as real processes, on this Python and on the oldest one it must work with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from provisioner.resources import template_path
from tests.tools import find_python, require

SUPERVISOR = str(template_path("supervisor.py"))
OPTIONS = ["-I", "-S", "-X", "utf8"]
WITHOUT_PRCTL = (
    "import runpy, sys; sys.modules['ctypes'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
JUMPING_CLOCK = (
    "import itertools, runpy, sys, time; count = itertools.count(); real = time.time; "
    "time.time = lambda: real() + 3600 * (-1) ** next(count); time.gmtime = lambda *a: time.localtime(time.time()); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Host:
    """A home folder with a supervisor in it."""

    def __init__(self, home: Path, python: str) -> None:
        self.home = home
        self.python = python
        self.program = [SUPERVISOR]
        self.folder = home / ".gpu-runner" / "job"

    def command(self, *words: str) -> list[str]:
        return [self.python, *OPTIONS, *self.program, *words]

    def call(self, *words: str, stdin: bytes = b"", ok: int = 0) -> bytes:
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, env=self.environ, timeout=60, check=False
        )
        assert done.returncode == ok, done.stderr.decode()
        return done.stdout

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C"}

    def start(self, *argv: str, token: str = "one", ok: int = 0, **spec: Any) -> dict[str, Any]:  # noqa: S107 - a job's name
        document = {"token": token, "argv": argv, "grace_s": 5.0} | spec
        answer: dict[str, Any] = json.loads(self.call("start", stdin=json.dumps(document).encode(), ok=ok))
        return answer

    def shell(self, script: str, **spec: Any) -> dict[str, Any]:
        return self.start("/bin/sh", "-c", script, **spec)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("status"))
        return answer

    def follow(self, offset: int = 0) -> bytes:
        return self.call("follow", "--offset", str(offset))

    def stop(self, grace_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("stop", "--grace", str(grace_s)))
        return answer

    def ended(self) -> dict[str, Any]:
        """Wait for the end."""
        self.follow()
        return self.status()

    def supervisor_pid(self) -> int:
        pid: int = json.loads((self.folder / "lock").read_text())["pid"]
        return pid

    def relatives(self) -> list[int]:
        """Every process that carries this home folder, whoever its parent is."""
        return [pid for pid in _pids() if f"HOME={self.home}".encode() in _environ(pid)]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environ(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def eventually(check: Callable[[], Any], within_s: float = 10.0) -> Any:
    end = time.monotonic() + within_s
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.01)
    assert found
    return found


@pytest.fixture(params=["this", "3.8"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    python = sys.executable if request.param == "this" else find_python(request.param)
    made = Host(tmp_path, python)
    yield made
    for pid in made.relatives():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_job_its_log_and_its_exit_code(host: Host) -> None:
    answer = host.shell("echo out; echo err >&2; pwd; echo $GREETING; exit 5", env={"GREETING": "hello"})
    assert answer["started"]
    assert not answer["already"]
    assert host.follow() == b"out\nerr\n%s/work\nhello\n" % os.fsencode(host.home)
    status = host.status()
    assert (status["state"], status["exit_code"], status["signal"]) == ("ended", 5, None)
    assert not status["timed_out"]
    assert not status["stopped"]
    assert status["log_bytes"] == len(host.follow())
    assert 0 <= status["duration_s"] < 10
    assert host.relatives() == []


def test_without_a_job(host: Host) -> None:
    assert host.status() == {"state": "none", "meta": {}}
    host.call("follow", ok=4)
    host.call("stop", ok=4)


def test_start_returns_at_once_and_holds_nothing_of_the_caller_open(host: Host) -> None:
    began = time.monotonic()
    host.start("sleep", "20")  # subprocess.run would wait for the end of stdout and stderr
    assert time.monotonic() - began < 5
    theirs = {str(path.readlink()) for path in Path(f"/proc/{host.supervisor_pid()}/fd").iterdir()}
    ours = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    assert theirs & ours <= {"/dev/null"}
    assert host.stop(1)["exit_code"] == 143


def test_names_that_are_no_utf_8_reach_the_job(host: Host) -> None:
    name = b"caf\xe9 \n".decode(errors="surrogateescape")
    host.start("printf", "%s", name, env={"X": name})
    assert host.follow() == b"caf\xe9 \n"


def test_the_command_is_found_on_the_path_of_the_given_environment(host: Host) -> None:
    tools = host.home / "tools"
    tools.mkdir()
    (tools / "mine").write_text("#!/bin/sh\necho mine\n")
    (tools / "mine").chmod(0o755)
    host.start("mine", env={"PATH": str(tools)})
    assert host.follow() == b"mine\n"


def test_a_command_that_cannot_be_started(host: Host) -> None:
    host.start("nonesuch-command")
    assert b"nonesuch-command" in host.follow()
    assert host.status()["exit_code"] == 127
    host.start("/etc", token="two")
    assert host.ended()["exit_code"] == 126


def test_a_job_that_a_signal_ends(host: Host) -> None:
    host.shell("kill -SEGV $$")
    status = host.ended()
    assert (status["exit_code"], status["signal"]) == (139, 11)


def test_the_same_token_is_started_once_also_after_its_end(host: Host) -> None:
    host.shell("echo run")
    host.ended()
    assert host.shell("echo run")["already"]
    assert host.follow() == b"run\n"


def test_many_starts_at_once_make_one_job(host: Host) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: host.shell("echo run; sleep 0.3"), range(6)))
    assert sorted(answer["already"] for answer in answers) == [False] + [True] * 5
    assert host.follow() == b"run\n"


def test_another_token_is_refused_while_a_job_runs_and_replaces_it_afterwards(host: Host) -> None:
    host.shell("echo first; sleep 5")
    assert not host.shell("echo second", token="two", ok=3)["started"]
    host.stop(0)
    host.shell("echo second", token="two", meta={"artifacts": ["a*"]})
    assert host.follow() == b"second\n"
    assert host.status()["token"] == "two"
    assert host.status()["meta"] == {"artifacts": ["a*"]}


def test_setup_runs_first_and_its_failure_ends_the_job(host: Host) -> None:
    host.start("cat", "made", setup=["echo 1 > made", "echo 2 >> made"])
    assert host.follow() == b"1\n2\n"
    host.start("echo", "never", token="two", setup=["echo before", "false; echo not this", "echo nor this"])
    assert host.follow() == b"before\n"
    status = host.status()
    assert (status["exit_code"], status["failed_in"]) == (1, "setup")


def test_secrets_reach_the_job_and_nothing_else(host: Host) -> None:
    secret = "s3cr3t-value\nsecond line of it"
    script = 'printf "%s" "$KEY"; echo; echo "$KEY" | tail -1; printf "<s3cr3t-"; sleep 0.2; echo "value>"; sleep 30'
    host.shell(script, secrets={"KEY": secret})
    eventually(lambda: b">" in (host.folder / "log").read_bytes())
    assert (host.folder / "log").read_bytes() == b"***\n***\n<***>\n"
    for path in host.home.rglob("*"):
        assert path.is_dir() or b"s3cr3t-value" not in path.read_bytes()
    for pid in host.relatives():
        assert b"s3cr3t-value" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"s3cr3t" not in b"".join(_environ(host.supervisor_pid()))
    assert (host.folder / "log").stat().st_mode & 0o077 == 0
    host.stop(0)


def test_the_log_is_live(host: Host) -> None:
    host.start(host.python, "-c", "import time; print('first'); time.sleep(30)", secrets={"A": "firs", "B": "zzz"})
    with subprocess.Popen(host.command("follow"), stdout=subprocess.PIPE, env=host.environ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"***t\n"
        host.stop(0)


def test_the_time_limit_ends_a_job_that_ignores_sigterm(host: Host) -> None:
    host.shell("trap '' TERM; echo ready; while :; do sleep 0.1; done", timeout_s=0.5, grace_s=0.3)
    status = host.ended()
    assert (status["exit_code"], status["timed_out"], status["stopped"]) == (137, True, False)
    assert 0.8 <= status["duration_s"] < 5
    assert host.relatives() == []


def test_the_time_limit_counts_setup(host: Host) -> None:
    host.start("true", setup=["sleep 20"], timeout_s=0.3, grace_s=1)
    status = host.ended()
    assert (status["timed_out"], status["failed_in"], status["exit_code"]) == (True, "setup", 143)


def test_a_wall_clock_that_jumps_changes_nothing(host: Host) -> None:
    host.program = ["-c", JUMPING_CLOCK, SUPERVISOR]
    host.start("sleep", "20", timeout_s=1.0, grace_s=1)
    assert host.status()["state"] == "running"
    status = host.ended()
    assert status["timed_out"]
    assert 1.0 <= status["duration_s"] < 5


def test_stop_lets_a_job_save_its_work(host: Host) -> None:
    save = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(time.sleep(1.5) or print('saved') or 3)); "
    host.shell(f'{host.python} -c "{save} print(1); time.sleep(30)"; echo after')
    eventually(lambda: b"1" in (host.folder / "log").read_bytes())
    status = host.stop(10)
    assert status["stopped"]
    assert b"saved" in host.follow()  # though the shell in front of it died at once
    assert host.stop(1) == status


def test_stop_hurries_a_stop(host: Host) -> None:
    host.shell("trap '' TERM; echo ready; while :; do sleep 0.1; done", grace_s=60)
    eventually(lambda: b"ready" in (host.folder / "log").read_bytes())
    with subprocess.Popen(host.command("stop", "--grace", "60"), stdout=subprocess.DEVNULL, env=host.environ):
        time.sleep(0.3)
        assert host.stop(0.2)["exit_code"] == 137


DAEMON = (
    "import os, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "{close}print('daemon', os.getpid(), flush=True)\n"
    "time.sleep(100)\n"
)


@pytest.mark.parametrize("prctl", [True, False])
def test_daemons_do_not_outlive_the_job(host: Host, prctl: bool) -> None:  # noqa: FBT001 - a parameter of the test
    if not prctl:
        host.program = ["-c", WITHOUT_PRCTL, SUPERVISOR]
    holding = DAEMON.format(close="")
    silent = DAEMON.format(close="os.close(1); os.close(2); os.open('/dev/null', 1);")
    host.shell(f'{host.python} -c "{holding}"; {host.python} -c "{silent}"; sleep 0.5; echo done; exit 4')
    status = host.ended()
    assert b"daemon" in host.follow()
    assert (status["exit_code"], status["left_over"]) == (4, 0)
    assert status["duration_s"] < 10
    assert host.relatives() == []


def test_a_killed_supervisor_leaves_a_lost_job_that_stop_ends(host: Host) -> None:
    daemon = DAEMON.format(close="os.close(1); os.close(2); os.open('/dev/null', 1);")
    host.shell(f'{host.python} -c "{daemon}"; echo ready; exec sleep 100')
    eventually(lambda: b"ready" in (host.folder / "log").read_bytes())
    eventually(lambda: len(host.relatives()) == 3)
    os.kill(host.supervisor_pid(), signal.SIGKILL)
    eventually(lambda: host.status()["state"] == "lost")
    assert host.shell("echo again")["already"]
    assert host.follow() == b"ready\n"
    status = host.stop(1)
    assert (status["state"], status["stopped"]) == ("lost", True)
    assert host.relatives() == []


def test_follow_from_an_offset(host: Host) -> None:
    host.shell("echo 0123456789")
    assert host.follow(4) == b"456789\n"
    assert host.follow(11) == b""


def test_a_follower_whose_reader_is_gone_ends(host: Host) -> None:
    host.start("sleep", "100")
    with subprocess.Popen(host.command("follow"), stdout=subprocess.PIPE, env=host.environ) as follower:
        time.sleep(0.3)
        assert follower.poll() is None
        assert follower.stdout is not None
        follower.stdout.close()
        follower.wait(5)
    host.stop(0)


def test_a_hundred_megabytes_of_log_in_little_memory(host: Host) -> None:
    size = 100_000_000
    line = b"some line of a log with a key_1234 in it, and more of it\n"
    script = f"import sys\nfor _ in range({size // len(line)}): sys.stdout.buffer.write({line!r})"
    host.start(host.python, "-c", script, secrets={"KEY": "key_1234"}, env={"PYTHONUNBUFFERED": ""})
    peak = eventually(lambda: host.status()["log_bytes"] > size // 2 and _peak_kib(host.supervisor_pid()), 60)
    shown = hashlib.sha256()
    total = 0
    with subprocess.Popen(host.command("follow"), stdout=subprocess.PIPE, env=host.environ) as follower:
        assert follower.stdout is not None
        while data := follower.stdout.read(1 << 20):
            shown.update(data)
            total += len(data)
    expected = line.replace(b"key_1234", b"***") * (size // len(line))
    assert total == len(expected)
    assert shown.digest() == hashlib.sha256(expected).digest()
    assert peak < 60 << 10


def _peak_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def test_a_long_line_of_binary_without_an_end(host: Host) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(1, 256)) * 40000)"
    host.start(host.python, "-c", script, secrets={"A": "nothing of it"})
    assert host.follow() == bytes(range(1, 256)) * 40000


def test_a_log_that_may_not_grow_does_not_stop_the_job(host: Host) -> None:
    document = {"token": "one", "argv": ["/bin/sh", "-c", "head -c 3000000 /dev/zero; exit 9"]}
    start = "ulimit -f 1000; exec " + " ".join(host.command("start"))
    subprocess.run(["bash", "-c", start], input=json.dumps(document).encode(), env=host.environ, check=True)
    status = host.ended()
    assert status["exit_code"] == 9
    assert status["log_bytes"] + status["log_dropped_bytes"] == 3000000
    assert status["log_dropped_bytes"] > 0


def test_a_full_disk_does_not_stop_the_job_and_its_end_is_written_down(host: Host) -> None:
    unshare = require("unshare")
    space = [unshare, *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount"]
    if subprocess.run([*space, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a private mount is not allowed here")
    document = {"token": "one", "argv": ["/bin/sh", "-c", "head -c 3000000 /dev/zero; sleep 1.2; echo; exit 9"]}
    (host.home / "spec").write_text(json.dumps(document))
    folder = host.home / ".gpu-runner"
    folder.mkdir()
    program = " ".join(host.command())
    script = (
        f"mount -t tmpfs -o size=1m tmpfs {folder} && {program} start < {host.home}/spec > /dev/null && "
        f"{program} follow > /dev/null && {program} status"
    )
    done = subprocess.run([*space, "sh", "-ec", script], env=host.environ, capture_output=True, check=True, timeout=60)
    status = json.loads(done.stdout)
    assert (status["state"], status["exit_code"]) == ("ended", 9)
    assert status["log_dropped_bytes"] > 1000000
