"""A corner of the world for a test of the command line: its own folders, real processes, an eye on leftovers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provisioner.clock import SystemClock
from provisioner.providers.local import LocalProvider
from provisioner.providers.local.folder import Root
from provisioner.providers.local.view import group_prefix
from tests.contract.provider_contract import end_everything

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "provisioner")
PATIENCE_S = 60.0
"""How long anything may take before a test gives up; the machines that run the tests are noisy."""

_CI = re.compile(r"CI$|CI_|GITHUB_|GITLAB_|BITBUCKET_|JENKINS_|GPU_RUNNER_(?!LOCAL_(SSHD|CGROUPS)$)|RUNNER_")
_COLOUR = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_CGROUPS = Path("/sys/fs/cgroup")


def eventually(question: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Ask until the answer is true, and return it; what it was last if it never was."""
    end_s = time.monotonic() + timeout_s
    while not (answer := question()) and time.monotonic() < end_s:
        time.sleep(0.01)
    return answer


def heed_signals() -> None:
    """As in a shell in front of a person: tests that were started in the background inherit ignored signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: bytes
    stderr: str
    peak_mib: float

    @property
    def document(self) -> dict[str, Any]:
        """What ``--json`` printed: one document, and nothing else."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.stdout[-4000:].decode(errors='replace')}\n{self.stderr}"


class Command:
    """A ``gpu-runner`` that runs as a process of its own session.

    Args:
        argv: The whole command line.
        env: Its environment.
        cwd: Where it runs.
        folder: Where its output is kept.
        terminal: Whether stdin and stderr are a terminal.
        stdout: Where stdout goes; None for a file that ``wait`` reads.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        folder: Path,
        terminal: bool = False,
        stdout: int | None = None,
    ) -> None:
        name = secrets.token_hex(4)
        self._out = folder / f"{name}.out"
        self._err = folder / f"{name}.err"
        self._master: int | None = None
        self._hung_up = threading.Event()
        self.peak_kib = 0
        with self._out.open("wb") as out, self._err.open("wb") as err:
            where = out.fileno() if stdout is None else stdout
            if terminal:
                self._start_on_terminal(argv, env=env, cwd=cwd, stdout=where)
            else:
                self.process = subprocess.Popen(
                    argv,
                    env=env,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=where,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=heed_signals,  # noqa: PLW1509  # must be done in the child
                )
        self.pid = self.process.pid
        threading.Thread(target=self._measure, daemon=True).start()

    def _start_on_terminal(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdout: int) -> None:
        self._master, slave = pty.openpty()
        os.set_inheritable(self._master, False)

        def own_the_terminal() -> None:
            heed_signals()
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=slave,
            stdout=stdout,
            stderr=slave,
            preexec_fn=own_the_terminal,  # noqa: PLW1509  # a terminal must be taken in the child
        )
        os.close(slave)
        threading.Thread(target=self._read_terminal, args=(self._master,), daemon=True).start()

    def _read_terminal(self, master: int) -> None:
        with self._err.open("ab", buffering=0) as err, contextlib.suppress(OSError):
            while not self._hung_up.is_set():
                if select.select([master], [], [], 0.02)[0]:
                    err.write(os.read(master, 65536))
        os.close(master)

    def _measure(self) -> None:
        """The kernel keeps the peak; asking again and again only guards against its end."""
        with contextlib.suppress(OSError, AttributeError):
            while self.process.returncode is None:
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(encoding="ascii"))
                self.peak_kib = int(found.group(1)) if found else self.peak_kib
                time.sleep(0.03)

    @property
    def stderr(self) -> str:
        """What it said so far, without colours."""
        return _COLOUR.sub(b"", self._err.read_bytes()).decode(errors="replace").replace("\r", "")

    @property
    def stdout(self) -> bytes:
        """What it printed so far."""
        return self._out.read_bytes()

    def until(self, question: Callable[[], Any], what: str = "it") -> Any:
        """Wait for something to become so while the command runs; it may have ended by then."""
        answer = eventually(lambda: question() or self.process.poll() is not None)
        assert answer, f"{what} never came\n{self.stderr}"
        answer = question()
        assert answer, f"the command ended with {self.process.returncode} before {what}\n{self.stderr}"
        return answer

    def until_step(self, name: str) -> None:
        """Wait for the line that a step begins with."""
        self.until(lambda: re.search(rf"s\] {name}  ", self.stderr), f"step {name}")

    def until_log(self, text: bytes) -> None:
        """Wait for something in the job's log."""
        self.until(lambda: text in self.stdout, f"{text!r} in the log")

    def until_file(self, path: Path) -> None:
        """Wait for a file."""
        self.until(path.exists, str(path))

    def signal(self, number: int) -> float:
        """Send a signal; the moment at which it was sent."""
        os.kill(self.pid, number)
        return time.monotonic()

    def ctrl_c(self) -> float:
        """Press it on the terminal."""
        assert self._master is not None
        os.write(self._master, b"\x03")
        return time.monotonic()

    def hang_up(self) -> None:
        """Take the terminal away."""
        self._hung_up.set()

    def wait(self, timeout_s: float = PATIENCE_S) -> Done:
        """Wait for its end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout_s:.0f} s\n{self.stderr}", pytrace=False)
        time.sleep(0.05 if self._master is not None else 0)  # the terminal's last words
        return Done(code, self.stdout, self.stderr, self.peak_kib / 1024)

    def close(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._hung_up.set()


class Box:
    """One corner.

    Args:
        base: An empty folder.

    Attributes:
        base: The folder of everything.
        work: A git repository, where commands run.
        state: The state folder.
        machines: The folder of local machines.
        program: How ``gpu-runner`` is started.
        nonce: Put it into a job's command lines to find its processes wherever they hide.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.work = base / "work"
        self.state = base / "state"
        self.machines = base / "m"
        self.program = PROGRAM
        self.nonce = f"{secrets.randbelow(10**9):09d}"
        self._commands: list[Command] = []
        self._logs = base / "logs"
        for folder in (self.work, self._logs):
            folder.mkdir()
        subprocess.run(["git", "init", "-q", str(self.work)], check=True)
        (self.work / "hello.txt").write_text("hello\n")

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a command: a person's, outside any CI, with folders of this box."""
        mine = {name: value for name, value in os.environ.items() if not _CI.match(name)}
        mine |= {"GPU_RUNNER_STATE_DIR": str(self.state), "GPU_RUNNER_LOCAL_DIR": str(self.machines)}
        return mine | more

    def start(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        terminal: bool = False,
        stdout: int | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> Command:
        """Start ``gpu-runner`` with some arguments."""
        command = Command(
            [*program, *args],
            env=self.env(**(env or {})),
            cwd=self.work,
            folder=self._logs,
            terminal=terminal,
            stdout=stdout,
        )
        self._commands.append(command)
        return command

    def run(self, *args: str, env: Mapping[str, str] | None = None, timeout_s: float = PATIENCE_S) -> Done:
        """Run ``gpu-runner`` to its end."""
        return self.start(*args, env=env).wait(timeout_s)

    def job(self, *args: str, **options: Any) -> Command:
        """Start ``gpu-runner run``; the lease id is ``gr-test``."""
        return self.start("run", "--lease-id", "gr-test", *args, **options)

    def from_nowhere(self) -> dict[str, str]:
        """The environment of a terminal whose state folder is empty."""
        return {"GPU_RUNNER_STATE_DIR": str(self.base / f"state-{secrets.token_hex(4)}")}

    def machine(self) -> Path:
        """The folder of the machine that is there."""
        (found,) = (path for path in self.machines.iterdir() if not path.name.startswith("."))
        return found

    def home(self) -> Path:
        """The login's home on it."""
        return self.machine() / "home"

    def guard(self) -> int:
        """Process id of its guard."""
        return int(json.loads((self.machine() / "state.json").read_text())["pid"])

    def processes(self) -> list[int]:
        """Processes of any machine of this box, and of jobs that carry the nonce."""
        mark = f"GPU_RUNNER_MACHINE={self.machines}/".encode()
        return sorted(
            {*_processes_with("environ", mark), *_processes_with("cmdline", self.nonce.encode())} - self._own()
        )

    def _own(self) -> set[int]:
        return {command.pid for command in self._commands} | {os.getpid()}

    def leftovers(self) -> list[str]:
        """Everything that a command made and that is still there."""
        left = [f"process {pid}: {_command_line(pid)}" for pid in self.processes()]
        left += [str(path) for path in self.machines.iterdir()] if self.machines.exists() else []
        prefix = group_prefix(Root(self.machines))
        left += [str(path) for depth in range(1, 7) for path in _CGROUPS.glob("*/" * (depth - 1) + f"{prefix}*")]
        leases = self.state / "leases"
        left += [str(path) for path in leases.rglob("*")] if leases.exists() else []
        return left

    def on_host(self) -> list[str]:
        """The same without the state folder, which is a controller's own affair."""
        return [left for left in self.leftovers() if not left.startswith(str(self.state))]

    def assert_nothing_left(self) -> None:
        """No process, folder, cgroup, record or key."""
        assert self.leftovers() == []

    def seconds_until_dead(self, since: float) -> float:
        """When neither the machine nor a process of it was there any more, counted from a moment."""

        def dead() -> bool:
            there = self.machines.exists() and any(self.machines.glob("gr-*"))
            return not there and not self.processes()

        assert eventually(dead), self.leftovers()
        return time.monotonic() - since

    def close(self) -> None:
        """End whatever a test left, for the sake of the next one."""
        for command in self._commands:
            command.close()
        if self.machines.exists():
            self.machines.chmod(0o700)
            end_everything(LocalProvider(clock=SystemClock(), root=self.machines))
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.base, ignore_errors=True)


def _processes_with(file: str, needle: bytes) -> Iterator[int]:
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with contextlib.suppress(OSError):
            if needle in path.read_bytes():
                yield int(path.parent.name)


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "gone"


@contextlib.contextmanager
def small_disk(path: Path, size: str, *more: str) -> Iterator[Path]:
    """A file system of its own with little room; only root may mount one."""
    path.mkdir()
    options = ",".join((f"size={size}", "mode=700", *more))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("this user may not mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
