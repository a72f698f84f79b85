"""The provider itself: the verbs, put together from folders, processes, cgroups and GPUs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from provisioner.clock import Clock, SystemClock
from provisioner.errors import (
    AuthError,
    ConfigError,
    GpuRunnerError,
    LeaseHeldError,
    NotFoundError,
    RefusedError,
    TransientError,
)
from provisioner.models import (
    Check,
    Expect,
    Inventory,
    LaunchIntent,
    Machine,
    MachineRef,
    MachineState,
    Offer,
    Residue,
    Scope,
    SshKeys,
    Unread,
)
from provisioner.providers.base import Traits
from provisioner.providers.local import cgroups, checks, gpus, host, processes, sshserver, stock, view
from provisioner.providers.local.folder import (
    MachineFolder,
    Root,
    lease_of,
    machine_of_leftover,
    read_json,
    remove_tree,
    write_file,
    write_json,
)
from provisioner.providers.local.tags import Tags

_KILL_WAIT_S = 10.0
_SPAWN_PATIENCE_S = 5.0
_LINGER_S = 30.0
_REAL = SystemClock()


class LocalProvider:
    """Machines on this host.

    Args:
        clock: Ages are told on it; waits for real processes are always real.
        root: Folder of the machines; None for ``$GPU_RUNNER_LOCAL_DIR`` or this user's own below /var/tmp.
        linger_s: How long a machine that ended itself is still shown, as terminated, with the reason.
    """

    name: ClassVar[str] = "local"
    traits: ClassVar[Traits] = Traits(
        poweroff_ends=frozenset({"compute", "disk", "address", "quota"}),
        native_deadline=False,
        boot_allowance_s=10.0,
        collect_allowance_s=10.0,
        fuse_s=60.0,
        poll_s=0.05,
        watch_s=1.0,
        release_timeout_s=30.0,
        confirm_after_s=2.0,
        not_found_grace_s=2.0,
        leaves_note=True,
    )

    def __init__(self, *, clock: Clock, root: Path | None = None, linger_s: float = _LINGER_S) -> None:
        self._clock = clock
        self._root = Root(root)
        self._linger_s = linger_s

    def launch(self, intent: LaunchIntent) -> MachineRef:
        """See Provider."""
        sshserver.check_path(self._root.path)
        folder = self._root.machine(intent.name)
        self._sweep_note(folder, intent.lease.holder)
        if not folder.exists():
            wanted = stock.check(intent.offer)
            self._root.ensure()
            self._make(intent, folder, wanted)
        tags = self._read_tags(folder)
        if tags is None and not folder.exists():  # swept away at once by somebody who may: describe will tell
            return self._ref(folder)
        if tags is None or tags.lease.holder != intent.lease.holder:
            raise _held(intent, tags)
        self._ensure_started(folder)
        return self._ref(folder)

    def describe(self, ref: MachineRef) -> Machine:
        """See Provider."""
        return view.machine(self._root.machine(ref.id), self._root, self._clock)

    def inventory(self, scope: Scope) -> Inventory:
        """See Provider."""
        machines: list[Machine] = []
        residue: list[Residue] = []
        unread: list[Unread] = []

        def part(name: str, read: Callable[[], None]) -> None:
            try:
                read()
            except GpuRunnerError as error:
                unread.append(Unread(f"{self.name}: {name}", error))
            except OSError as error:
                wrapped = TransientError(f"cannot read {name}", details=str(error))
                unread.append(Unread(f"{self.name}: {name}", wrapped))

        part(f"the folder {self._root.path}", lambda: machines.extend(self._machines(scope, unread)))
        part(f"leftovers in {self._root.path}", lambda: residue.extend(self._leftovers(scope)))
        part("processes", lambda: residue.extend(self._stray_processes(scope)))
        part("cgroups", lambda: residue.extend(self._stray_cgroups(scope)))
        return Inventory(tuple(machines), tuple(residue), tuple(unread))

    def mark_releasing(self, ref: MachineRef, expect: Expect) -> None:
        """See Provider."""
        self._change_tags(ref, expect, {"releasing": True})

    def adopt(self, ref: MachineRef, expect: Expect, holder: str) -> None:
        """See Provider."""
        self._change_tags(ref, expect, {"holder": holder})

    def terminate(self, ref: MachineRef, expect: Expect) -> None:
        """See Provider."""
        folder = self._root.machine(ref.id)
        try:
            with folder.exclusive() as there:
                if there:
                    _check(ref, self._read_tags(folder), expect)
                    self._end_processes(folder)
                    folder.retire()
        except PermissionError as error:
            raise AuthError(f"not allowed to end machine {ref.id}", details=str(error)) from error
        if not folder.exists():
            self._remove_groups(folder.name)
        for leftover in self._root.leftovers():
            if leftover.name.startswith(".gone-") and machine_of_leftover(leftover.name) == folder.name:
                remove_tree(leftover.path)

    def remove_residue(self, residue_id: str, kind: str) -> None:
        """See Provider."""
        if kind == "folder" and machine_of_leftover(residue_id) is not None:
            remove_tree(self._root.path / residue_id)
        elif kind == "process":
            self._remove_process(residue_id)
        elif kind == "cgroup" and Path(residue_id).name.startswith(self._group_prefix()):
            self._remove_group(residue_id)
        else:
            raise ConfigError(f"{kind} {residue_id} is no residue of local machines")

    def offers(self) -> Sequence[Offer]:
        """See OfferSource."""
        return stock.of_host()

    def checks(self) -> Sequence[Check]:
        """See CheckSource."""
        return checks.of_host(self._root)

    def grant_access(self, ref: MachineRef, user_public_key: str) -> None:
        """See AccessSource."""
        folder = self._root.machine(ref.id)
        with folder.exclusive() as there:
            if not there or not folder.authorized_keys.exists():
                raise NotFoundError(f"machine {ref.id} is not there")
            line = user_public_key.strip().encode() + b"\n"
            known = folder.authorized_keys.read_bytes()
            if line not in known.splitlines(keepends=True):
                write_file(folder.authorized_keys, known + line)

    def _sweep_note(self, folder: MachineFolder, holder: str) -> None:
        """Remove what a machine of an earlier holder left to be read: it has ended and holds nothing."""
        tags = self._read_tags(folder)
        if tags is None or tags.lease.holder == holder:
            return
        ref = self._ref(folder)
        with contextlib.suppress(NotFoundError, RefusedError):  # gone, or somebody else's by now
            if self.describe(ref).state is MachineState.TERMINATED:
                self.terminate(ref, Expect(tags.lease.id, tags.lease.holder))

    def _make(self, intent: LaunchIntent, folder: MachineFolder, wanted: stock.Wanted) -> None:
        prepared = self._root.new(folder.name)
        try:
            with self._root.exclusive():
                uuids = stock.allocate(wanted, self._tags_in_use()) if wanted.gpu_count else ()
                self._fill(prepared, folder, intent, wanted, uuids)
                self._root.publish(prepared, folder.name)
        except OSError as error:
            raise TransientError(f"machine {folder.name} could not be made", details=str(error)) from error
        finally:
            if prepared.exists():
                remove_tree(prepared.path)

    def _fill(
        self,
        prepared: MachineFolder,
        final: MachineFolder,
        intent: LaunchIntent,
        wanted: stock.Wanted,
        uuids: tuple[str, ...],
    ) -> None:
        environment = sshserver.session_environment(final, intent.lease.id, gpus.variables(uuids), os.environ)
        sshserver.write_files(
            prepared,
            final,
            environment,
            user_public_key=intent.ssh.user_public_key,
            host_private_key=intent.ssh.host_private_key,
        )
        tags = Tags(
            lease=intent.lease,
            attempt=intent.attempt,
            offer=intent.offer,
            created_boottime_s=_REAL.elapsed_s(),
            created_utc=self._clock.utc().isoformat(),
            boot_id=host.boot_id(),
            user=sshserver.login_name(),
            host_public_key=_host_public_key(intent.ssh),
            server=sshserver.choose_server(),
            cgroup=self._group_prefix() + final.name,
            limits=wanted.limits._asdict(),
            gpus=uuids,
            linger_s=self._linger_s,
        )
        write_json(prepared.tags_file, tags.to_json())

    def _ensure_started(self, folder: MachineFolder) -> None:
        """Start the first process, unless it was started; a starter that died before it did is made up for."""
        with folder.exclusive() as there:
            if not there or folder.state_file.exists() or folder.guard_alive():
                return
            spawned = read_json(folder.spawned_file)
            now_s = _REAL.elapsed_s()
            if spawned is not None and 0 <= now_s - float(spawned.get("boottime_s", 0.0)) < _SPAWN_PATIENCE_S:
                return
            try:
                write_json(folder.spawned_file, {"boottime_s": now_s})
                _spawn(folder)
            except OSError as error:
                raise TransientError(f"machine {folder.name} could not be started", details=str(error)) from error

    def _machines(self, scope: Scope, unread: list[Unread]) -> Iterable[Machine]:
        if not self._root.check():
            return
        for folder in self._root.machines():
            if scope.lease_id in (None, lease_of(folder.name)):
                try:
                    yield view.machine(folder, self._root, self._clock)
                except NotFoundError:  # it ended while we read
                    continue
                except (OSError, GpuRunnerError) as error:
                    wrapped = TransientError(f"cannot read machine {folder.name}", details=str(error))
                    unread.append(Unread(f"{self.name}: machine {folder.name}", wrapped))

    def _leftovers(self, scope: Scope) -> Iterable[Residue]:
        for folder in self._root.leftovers():
            lease_id = lease_of(machine_of_leftover(folder.name) or "")
            if scope.lease_id in (None, lease_id):
                age_s = view.leftover_age_s(folder, self._clock)
                yield Residue(self.name, host.REGION, "folder", folder.name, lease_id, age_s)

    def _stray_processes(self, scope: Scope) -> Iterable[Residue]:
        found = processes.strays(str(self._root.path), self._group_prefix())
        for name, members in found.items():
            owner = machine_of_leftover(name) or name
            if scope.lease_id not in (None, lease_of(owner)) or (self._root.path / owner).exists():
                continue
            for process in members:
                residue_id = f"{process.pid}@{process.start}"
                yield Residue(self.name, host.REGION, "process", residue_id, lease_of(owner))

    def _stray_cgroups(self, scope: Scope) -> Iterable[Residue]:
        prefix = self._group_prefix()
        for name, paths in cgroups.find(prefix).items():
            machine = name[len(prefix) :]
            if scope.lease_id in (None, lease_of(machine)) and not (self._root.path / machine).exists():
                for path in paths:
                    yield Residue(self.name, host.REGION, "cgroup", path, lease_of(machine))

    def _change_tags(self, ref: MachineRef, expect: Expect, change: dict[str, object]) -> None:
        folder = self._root.machine(ref.id)
        with folder.exclusive() as there:
            if not there:
                raise NotFoundError(f"machine {ref.id} is not there")
            data = read_json(folder.tags_file)
            _check(ref, Tags.from_json(data), expect)
            if data is None:
                raise RefusedError(f"the tags of machine {ref.id} cannot be read")
            if "holder" in change:
                data["lease"]["holder"] = change["holder"]
            if "releasing" in change:
                data["releasing"] = True
            try:
                write_json(folder.tags_file, data)
            except OSError as error:
                raise TransientError(f"cannot write the tags of machine {ref.id}", details=str(error)) from error

    def _end_processes(self, folder: MachineFolder) -> None:
        """End everything that runs in a machine, its guard last: orphans stay below the guard while it lives."""
        group = self._group_prefix() + folder.name
        state = read_json(folder.state_file) or {}
        init = state.get("pid") if folder.guard_alive() else None
        for path in cgroups.find(group).get(group, []):
            cgroups.freeze_forks(path)
            cgroups.kill_members(path)
        where = str(folder.path)
        if isinstance(init, int):
            processes.end_all(lambda: processes.of_machine(where, group, init=init), timeout_s=1.0)
        left = processes.end_all(lambda: processes.of_machine(where, group), timeout_s=_KILL_WAIT_S)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise TransientError(f"machine {folder.name} has processes that do not die", details=f"process ids {pids}")

    def _remove_groups(self, name: str) -> None:
        group = self._group_prefix() + name
        for path in cgroups.find(group).get(group, []):
            self._remove_group(path)

    def _remove_group(self, path: str) -> None:
        cgroups.freeze_forks(path)
        cgroups.kill_members(path)

        def living() -> list[processes.Process]:
            found = (processes.read_process(pid) for pid in cgroups.members(path))
            return [process for process in found if process is not None]

        processes.end_all(living, timeout_s=_KILL_WAIT_S)
        cgroups.remove(path)

    def _remove_process(self, residue_id: str) -> None:
        pid, _, start = residue_id.partition("@")

        def living() -> list[processes.Process]:
            process = processes.read_process(int(pid))
            if process is None or str(process.start) != start:
                return []
            return [process, *processes.descendants(process.pid)]

        if not pid.isdigit():
            raise ConfigError(f"process {residue_id} is no residue of local machines")
        if processes.end_all(living, timeout_s=_KILL_WAIT_S):
            raise TransientError(f"process {pid} does not die")

    def _tags_in_use(self) -> list[Tags]:
        """Tags of the machines that hold GPUs; a machine that only lingers holds none."""
        found = []
        for folder in self._root.machines():
            tags = self._read_tags(folder)
            if tags is not None and (read_json(folder.state_file) or {}).get("state") != view.TERMINATED:
                found.append(tags)
        return found

    def _read_tags(self, folder: MachineFolder) -> Tags | None:
        try:
            return Tags.from_json(read_json(folder.tags_file))
        except OSError as error:
            raise TransientError(f"cannot read the tags of machine {folder.name}", details=str(error)) from error

    def _group_prefix(self) -> str:
        return view.group_prefix(self._root)

    def _ref(self, folder: MachineFolder) -> MachineRef:
        return MachineRef(self.name, host.REGION, folder.name, lease_of(folder.name))


def _check(ref: MachineRef, tags: Tags | None, expect: Expect) -> None:
    """Refuse a machine that is not what the caller thinks."""
    lease_id = tags.lease.id if tags is not None else lease_of(ref.id)
    if expect.lease_id is not None and expect.lease_id != lease_id:
        raise RefusedError(f"machine {ref.id} belongs to lease {lease_id}, not to {expect.lease_id}")
    if expect.holder is None:
        return
    if tags is None:
        raise RefusedError(
            f"the tags of machine {ref.id} cannot be read, so its holder is not known",
            resolution=f"end it with `gpu-runner down {lease_id}`",
        )
    if expect.holder != tags.lease.holder:
        raise RefusedError(f"machine {ref.id} is held by another gpu-runner (holder {tags.lease.holder[:8]})")


def _held(intent: LaunchIntent, tags: Tags | None) -> LeaseHeldError:
    holder = f"holder {tags.lease.holder[:8]}" if tags is not None else "its tags cannot be read"
    return LeaseHeldError(
        f"lease {intent.lease.id} is held by another gpu-runner ({holder})",
        details=f"its machine {intent.name} is on this host",
        resolution=f"use another --lease-id, or end it with `gpu-runner down {intent.lease.id}`",
    )


def _spawn(folder: MachineFolder) -> None:
    """Start a machine's first process as nobody's child, with nothing of our environment but where tools are."""
    package_parent = str(Path(__file__).resolve().parents[3])
    kept = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ") if name in os.environ
    }
    own = {name: os.environ[name] for name in ("GPU_RUNNER_LOCAL_CGROUPS",) if name in os.environ}
    environment = {**kept, **own, "PYTHONPATH": package_parent, processes.MARK: str(folder.path)}
    # Without site-packages (-S): the first process needs none of them, and starts faster.
    command = [sys.executable, "-S", "-m", "provisioner.providers.local.init", str(folder.path)]
    with folder.console_file.open("ab") as console:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            check=True,
        )


def _host_public_key(ssh: SshKeys) -> str:
    """The public line of the host key, from the pair or from its private half."""
    if ssh.host_public_key:
        return " ".join(ssh.host_public_key.split()[:2])
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_ssh_private_key(ssh.host_private_key.encode(), password=None)
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()
