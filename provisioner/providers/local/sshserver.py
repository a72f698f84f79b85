"""A machine's private SSH server: which program, its files, its address. Light imports only."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

from provisioner.errors import ConfigError
from provisioner.providers.local.folder import MachineFolder, write_file

SSHD = "sshd"
PARAMIKO = "paramiko"
_SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/libexec", "/opt/homebrew/sbin")
_SFTP = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
)
_PRIVSEP_FOLDER = Path("/run/sshd")
_UNSAFE = set('"\\%\n\r\0')
_CONFIG = """\
HostKey "{host_key}"
AuthorizedKeysFile "{authorized_keys}"
PidFile none
UsePAM no
StrictModes no
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
PermitUserEnvironment no
AllowTcpForwarding yes
AllowAgentForwarding no
X11Forwarding no
PrintMotd no
PrintLastLog no
UseDNS no
Compression no
LoginGraceTime 20
MaxSessions 100
MaxStartups 100
LogLevel INFO
SetEnv {environment}
ForceCommand {command}
{sftp}"""
_SESSION = """\
#!/bin/sh
# Every session of this machine begins here.
{exports}
cd "$HOME" || exit 1
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then
  command=$SSH_ORIGINAL_COMMAND
  unset SSH_ORIGINAL_COMMAND
  exec /bin/sh -c "$command"
fi
exec "${{SHELL:-/bin/sh}}" -i
"""


def check_path(root: Path) -> None:
    """Refuse a root whose path a server's configuration file cannot hold.

    Args:
        root: The folder of machines.

    Raises:
        ConfigError: If so.
    """
    if _UNSAFE.intersection(str(root)):
        raise ConfigError(
            f"the folder of local machines {str(root)!r} has a character that an SSH server cannot take",
            resolution="set GPU_RUNNER_LOCAL_DIR to a path without quotes, backslashes, percent signs and line breaks",
        )


def choose_server() -> str:
    """OpenSSH's ``sshd`` where it is installed and lets this user in, else the server of our own.

    Returns:
        The path of sshd, or ``paramiko``.
    """
    if os.environ.get("GPU_RUNNER_LOCAL_SSHD") == PARAMIKO:
        return PARAMIKO
    import shutil

    sshd = shutil.which(SSHD, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))
    return os.path.abspath(sshd) if sshd and _may_log_in() else PARAMIKO  # noqa: PTH100


def login_name() -> str:
    """Name of this user; the number where it has none (as in some containers)."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def login_shell() -> str:
    """This user's shell, or a plain one."""
    import pwd

    try:
        shell = pwd.getpwuid(os.geteuid()).pw_shell
    except KeyError:
        shell = ""
    return shell if os.access(shell, os.X_OK) and not _closed(shell) else "/bin/sh"


def _may_log_in() -> bool:
    """Whether sshd would accept this user: it needs an account, a shell, and (for root) one that is not locked."""
    import pwd

    try:
        account = pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    if _closed(account.pw_shell) or not os.access(account.pw_shell or "/bin/sh", os.X_OK):
        return False
    return os.geteuid() != 0 or not _is_locked(account.pw_name)


def _closed(shell: str) -> bool:
    return os.path.basename(shell) in ("nologin", "false")  # noqa: PTH119


def _is_locked(name: str) -> bool:
    try:
        lines = Path("/etc/shadow").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{name}:!") for line in lines)


def session_environment(
    folder: MachineFolder, lease_id: str, gpus: Mapping[str, str], outer: Mapping[str, str]
) -> dict[str, str]:
    """The environment of every session.

    Args:
        folder: The machine's folder, under its final name.
        lease_id: Its lease.
        gpus: Variables that show GPUs, or hide them.
        outer: The environment of the process that asked for the machine: tools are found where it finds them.

    Returns:
        Variables by name.
    """
    from provisioner.providers.local.processes import MARK

    kept = {name: outer[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ") if name in outer}
    return {
        "PATH": os.defpath,
        **kept,
        **gpus,
        "HOME": str(folder.home),
        "TMPDIR": str(folder.tmp),
        "USER": login_name(),
        "LOGNAME": login_name(),
        "SHELL": login_shell(),
        "GPU_RUNNER_LEASE": lease_id,
        MARK: str(folder.path),
    }


def write_files(
    prepared: MachineFolder,
    final: MachineFolder,
    environment: Mapping[str, str],
    *,
    user_public_key: str,
    host_private_key: str,
) -> None:
    """Write the server's files.

    Args:
        prepared: The folder to write to.
        final: The folder it will be: paths inside the files are those.
        environment: Of the sessions.
        user_public_key: OpenSSH line to let in.
        host_private_key: OpenSSH PEM.
    """
    prepared.home.mkdir(mode=0o700)
    prepared.tmp.mkdir(mode=0o700)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())
    write_file(prepared.session_script, os.fsencode(_SESSION.format(exports=exports)), 0o700)
    write_file(prepared.authorized_keys, user_public_key.strip().encode() + b"\n")
    write_file(prepared.host_key, host_private_key.encode())
    marks = {name: value for name, value in environment.items() if name == "HOME" or name.startswith("GPU_RUNNER_")}
    sftp = next((path for path in _SFTP if os.access(path, os.X_OK)), None)
    config = _CONFIG.format(
        host_key=final.host_key,
        authorized_keys=final.authorized_keys,
        environment=" ".join(f'"{name}={value}"' for name, value in marks.items()),
        command=shlex.quote(str(final.session_script)),
        sftp=f"Subsystem sftp {sftp}\n" if sftp else "",
    )
    write_file(prepared.sshd_config, os.fsencode(config))


def command_line(server: str, folder: MachineFolder, address: str, port: int) -> list[str]:
    """How to start the server.

    Args:
        server: From ``choose_server``.
        folder: The machine's folder.
        address: Where it listens.
        port: On which port.

    Returns:
        The argument list.
    """
    if server == PARAMIKO:
        module = "provisioner.providers.local.paramiko_server"
        return [sys.executable, "-m", module, str(folder.path), address, str(port)]
    _make_privsep_folder()
    where = ["-o", f"ListenAddress={address}", "-o", f"Port={port}"]
    return [server, "-D", "-e", "-f", str(folder.sshd_config), *where]


def _make_privsep_folder() -> None:
    """The folder that sshd wants as root and that only its service unit makes."""
    if os.geteuid() == 0 and _PRIVSEP_FOLDER.parent.is_dir():
        _PRIVSEP_FOLDER.mkdir(mode=0o755, exist_ok=True)


def loopback_address(folder: MachineFolder) -> str:
    """An address of the machine's own in 127.0.0.0/8, the same each time."""
    digest = zlib.crc32(os.fsencode(folder.path)).to_bytes(4, "big")  # spread, not secrecy; hashlib loads slowly
    return f"127.{1 + digest[0] % 254}.{digest[1]}.{1 + digest[2] % 254}"


def free_port(folder: MachineFolder) -> tuple[str, int]:
    """A free port on the machine's address, or on 127.0.0.1 where the host has no others.

    Returns:
        Address and port; somebody may take it before the server does, so be ready to try again.
    """
    for address in (loopback_address(folder), "127.0.0.1"):
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
            found: tuple[str, int] = probe.getsockname()
            return found
    raise OSError("no free port on the loopback addresses")


def is_listening(address: str, port: int) -> bool:
    """Whether something listens there; asked of the kernel, so that no server sees a connection."""
    word = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    wanted = f"{word:08X}:{port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: PTH123  # read every few milliseconds
        return any(wanted in line and line.split()[1] == wanted and line.split()[3] == "0A" for line in table)
