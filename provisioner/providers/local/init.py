"""The first process of a local machine: ``python -m provisioner.providers.local.init FOLDER``.

It stands apart from its starter (a session of its own), adopts every orphan of the machine (subreaper), starts the SSH
server inside the machine's cgroups (it stays outside itself: memory pressure must not kill the guard), runs the guard,
and at the end leaves nothing. Its death takes the SSH server's listener with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from provisioner.clock import SystemClock
from provisioner.errors import TransientError
from provisioner.providers.local import cgroups, processes, sshserver
from provisioner.providers.local.folder import MachineFolder, read_json, remove_tree, write_json
from provisioner.resources import template_path

STARTING = "starting"
RUNNING = "running"
ENDING = "ending"
TERMINATED = "terminated"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SERVER_TRIES = 5
_SERVER_WAIT_S = 5.0
_SERVER_POLL_S = 0.003
_KILL_WAIT_S = 5.0
_TRY_AGAIN_S = 1.0


class Init:
    """One machine's first process.

    Args:
        folder: The machine's folder.
        tags: Its ``machine.json``.
    """

    def __init__(self, folder: MachineFolder, tags: dict[str, Any]) -> None:
        self._folder = folder
        self._tags = tags
        self._clock = SystemClock()
        self._cgroup = str(tags["cgroup"])
        self._groups: list[str] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._restart_at_s: float | None = None
        self._address, self._port = "", 0
        self._wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        self._guard = self._make_guard()

    def run(self) -> None:
        """Boot, watch, end."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGINT, self._asked)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            self._boot()
        except Exception as error:  # noqa: BLE001  # whatever it was, the machine must end and say why
            self._end(f"it did not start: {error}", failed=True)
            return
        self._guard.run(self._pause)

    def _make_guard(self) -> Any:
        guard = _load_guard()
        lease = self._tags["lease"]
        limits = guard.Limits(
            hard_s=float(lease["ttl_s"]),
            fuse_s=float(lease["fuse_s"]),
            heartbeat_timeout_s=float(lease["heartbeat_timeout_s"]),
            idle_timeout_s=float(lease["idle_timeout_s"]),
            on_controller_loss=str(lease["on_controller_loss"]),
        )
        return guard.Guard(
            str(self._folder.home),
            limits,
            float(self._tags["created_boottime_s"]),
            ending=self._end,
            sessions=lambda: guard.count_sessions(self._port, self._address),
        )

    def _boot(self) -> None:
        limits = self._tags.get("limits") or {}
        self._groups = cgroups.create(self._cgroup, cgroups.Limits(**limits))
        server = str(self._tags["server"])
        if not self._start_somewhere(server) and not (
            server != sshserver.PARAMIKO and self._start_somewhere(sshserver.PARAMIKO)
        ):
            raise TransientError(f"its SSH server did not start: {self._last_words()}")
        self._say(RUNNING)

    def _start_somewhere(self, server: str) -> bool:
        for _ in range(_SERVER_TRIES if server != sshserver.PARAMIKO else 2):
            self._address, self._port = sshserver.free_port(self._folder)
            self._start(server)
            if self._listens():
                self._tags["server"] = server
                return True
        return False

    def _start(self, server: str) -> None:
        command = sshserver.command_line(server, self._folder, self._address, self._port)
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            cwd="/",
            preexec_fn=partial(_become_member, self._groups, os.getpid()),  # noqa: PLW1509  # one thread only
        )

    def _listens(self) -> bool:
        assert self._server is not None  # noqa: S101  # for the type checker
        end_s = self._clock.elapsed_s() + _SERVER_WAIT_S
        while self._clock.elapsed_s() < end_s:
            if self._server.poll() is not None:
                return False
            if sshserver.is_listening(self._address, self._port):
                return True
            self._clock.sleep(_SERVER_POLL_S)
        self._server.kill()
        self._server.wait()
        return False

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self._folder.console_file.read_text(errors="replace")[-500:].strip()
        return "it said nothing"

    def _pause(self, seconds: float) -> None:
        """Wait for a signal or for the time to pass; bury the dead; keep the SSH server up."""
        select.select([self._wakeup], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup, 512):
                pass
        for pid, status in _bury():
            if self._server is not None and pid == self._server.pid:
                self._server.returncode = os.waitstatus_to_exitcode(status)
                self._restart_at_s = self._clock.elapsed_s() + _TRY_AGAIN_S
        if self._restart_at_s is not None and self._clock.elapsed_s() >= self._restart_at_s:
            self._restart_at_s = None
            self._start(str(self._tags["server"]))

    def _asked(self, number: int, _frame: object) -> None:
        self._guard.asked = signal.Signals(number).name

    def _say(self, state: str, reason: str = "", *, failed: bool = False) -> None:
        write_json(
            self._folder.state_file,
            {
                "state": state,
                "reason": reason,
                "failed": failed,
                "pid": os.getpid(),
                "host": self._address,
                "port": self._port,
                "cgroups": self._groups,
            },
        )

    def _end(self, reason: str, *, failed: bool = False) -> None:
        """Leave no process, group, home or key; for a while a note that says why, then not even that."""
        with contextlib.suppress(OSError):  # a full disk keeps no machine alive
            self._say(ENDING, reason, failed=failed)
        while not self._emptied():
            self._clock.sleep(_TRY_AGAIN_S)
        try:
            self._say(TERMINATED, reason, failed=failed)
            self._linger(float(self._tags.get("linger_s", 0.0)))
        except OSError as error:
            _log(f"cannot leave a note: {error}")
        self._vanish()

    def _emptied(self) -> bool:
        """Kill and remove what can be; says on the console what cannot."""
        try:
            groups = cgroups.find(self._cgroup).get(self._cgroup, [])
            for group in groups:
                cgroups.freeze_forks(group)
                cgroups.kill_members(group)
            left = processes.end_all(self._others, timeout_s=_KILL_WAIT_S)
            if left:
                _log(f"processes that do not die: {[process.pid for process in left]}")
                return False
            for group in groups:
                cgroups.remove(group)
            kept = {self._folder.tags_file, self._folder.state_file, self._folder.guard_lock_file}
            for path in set(self._folder.path.iterdir()) - kept:
                _remove(path)
        except FileNotFoundError:
            return True
        except (OSError, TransientError) as error:
            _log(f"cannot remove everything yet: {error}")
            return False
        return True

    def _others(self) -> list[processes.Process]:
        _bury()
        return processes.of_machine(str(self._folder.path), self._cgroup, init=os.getpid())

    def _linger(self, seconds: float) -> None:
        end_s = self._clock.elapsed_s() + seconds
        self._guard.asked = ""
        while self._clock.elapsed_s() < end_s and self._folder.exists() and not self._guard.asked:
            select.select([self._wakeup], [], [], min(1.0, end_s - self._clock.elapsed_s()))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 512)

    def _vanish(self) -> None:
        try:
            with self._folder.exclusive() as there:
                gone = self._folder.retire() if there else None
            if gone is not None:
                remove_tree(gone.path)
        except (OSError, TransientError) as error:
            _log(f"cannot remove the folder: {error}")


def main() -> int:
    """Entry of the process."""
    folder = MachineFolder(Path(sys.argv[1]))
    with contextlib.suppress(PermissionError):  # a group leader already, as when started by hand
        os.setsid()
    lock = folder.take_guard_lock()
    if lock is None:
        return 0
    tags = read_json(folder.tags_file)
    if tags is None:
        _log("no tags: nothing to guard")
        return 1
    Init(folder, tags).run()
    return 0


def _load_guard() -> Any:
    """The guard's one file, as a module: it ships as a template because it also goes to other machines."""
    spec = importlib.util.spec_from_file_location("gpu_runner_guard", template_path("guard.py"))
    assert spec is not None  # noqa: S101  # a file that exists has a spec
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _become_member(groups: list[str], parent: int) -> None:
    """Runs in the SSH server before its program: join the cgroups, and die with the guard."""
    for group in groups:
        with contextlib.suppress(OSError):  # this hierarchy does not want us: the others and the marks remain
            cgroups.join(group)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another libc: marks and cgroups remain
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _bury() -> list[tuple[int, int]]:
    """Take leave of every dead child; subprocess does not mind."""
    dead = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            dead.append((pid, status))
    return dead


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"init: {text}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    sys.exit(main())
