"""Files both ways over a real SSH server, also when the line or the stream breaks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.clock import SystemClock
from provisioner.errors import ConfigError, ExitCode, GpuRunnerError
from provisioner.remote import tarstream, transfer
from provisioner.remote.link import Link
from provisioner.remote.transfer import Collected, DownloadResult
from tests.sshd import PrivateSshd, private_sshd
from tests.tools import require

CLOCK = SystemClock()
MIB = 1 << 20
REPOSITORY = Path(__file__).parents[2]

# Stands before the real python3 on the machine's PATH and spoils the output, or the input, of its first few runs.
_SPOILER = """\
#!{python}
import os, subprocess, sys
real, mode, runs = {real!r}, {mode!r}, {runs}
counter = os.path.expanduser("~/spoiled")
done = len(open(counter).read()) if os.path.exists(counter) else 0
if done >= runs or sys.argv[-2] not in ("pack", "unpack"):
    os.execv(real, [real] + sys.argv[1:])
with open(counter, "a") as file:
    file.write("x")
if sys.argv[-2] == "pack":
    out = bytearray(subprocess.run([real] + sys.argv[1:], stdout=subprocess.PIPE).stdout)
    place = len(out) * 2 // 3
    if mode == "cut":
        del out[place:]
    else:
        out[place] ^= 1
    sys.stdout.buffer.write(out)
else:
    data = bytearray(sys.stdin.buffer.read())
    data[data.index(b"spoil me")] ^= 1
    sys.exit(subprocess.run([real] + sys.argv[1:], input=data).returncode)
"""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def link(sshd: PrivateSshd) -> Iterator[Link]:
    made = Link(sshd.endpoint, sshd.private_key, clock=CLOCK, reconnect_for_s=20)
    yield made
    made.close()


@pytest.fixture
def there(sshd: PrivateSshd, tmp_path: Path) -> Path:
    """The work folder on the machine; its name there is ``~/NAME``."""
    folder = sshd.home / tmp_path.name
    folder.mkdir()
    return folder


def fetch(link: Link, there: Path, output: Path, *globs: str, known: Collected | None = None) -> DownloadResult:
    return transfer.download(
        link, globs or ("*",), root=f"~/{there.name}", output=output, known=known or Collected(), final=True
    )


def git(folder: Path, *arguments: str) -> None:
    options = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always")
    subprocess.run([require("git"), *options, *arguments], cwd=folder, check=True, capture_output=True)


def repository(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    return folder


def names(plan: transfer.UploadPlan) -> set[str]:
    return set(plan.files)


def test_git_says_what_is_uploaded(tmp_path: Path) -> None:
    work = repository(tmp_path / "repository")
    for name in ("tracked", "deleted", "ignored.log", "untracked", "sub/inner", "odd\nname"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("12345")
    (work / os.fsdecode(b"\xff\xfe")).write_text("x")
    (work / "link").symlink_to("tracked")
    (work / ".gitignore").write_text("*.log\n")
    git(work, "add", "tracked", "deleted")
    (work / "deleted").unlink()
    plan = transfer.plan_upload(work)
    assert names(plan) == {".gitignore", "tracked", "untracked", "sub/inner", "odd\nname", "\udcff\udcfe", "link"}
    assert (plan.total_bytes, plan.from_git, plan.note) == (4 * 5 + 6 + 1, True, "")
    assert names(transfer.plan_upload(work / "sub")) == {"inner"}


def test_submodules_and_repositories_within_are_uploaded_too(tmp_path: Path) -> None:
    library = repository(tmp_path / "library")
    (library / "code").write_text("x")
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    work = repository(tmp_path / "work")
    git(work, "submodule", "add", str(library), "lib")
    (repository(work / "nested") / "file").write_text("x")
    assert names(transfer.plan_upload(work)) == {".gitmodules", "lib/code", "nested/file"}


def test_without_git_every_file_is_uploaded_and_it_says_so(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / ".git").rmdir()
    plan = transfer.plan_upload(tmp_path)
    assert (names(plan), plan.left_out) == ({"empty", "file"}, ("fifo",))
    assert "not in a git repository" in plan.note


def test_a_repository_that_git_cannot_read_is_a_clear_error(tmp_path: Path) -> None:
    require("git")
    (tmp_path / ".git").mkdir()
    with pytest.raises(ConfigError, match="git cannot list"):
        transfer.plan_upload(tmp_path)
    with pytest.raises(ConfigError, match="not there"):
        transfer.plan_upload(tmp_path / "missing")


def test_an_upload_keeps_links_modes_times_and_names(link: Link, there: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub" / "empty").mkdir(parents=True)
    (work / "script.sh").write_text("echo")
    (work / "script.sh").chmod(0o755)
    (work / "secret").write_text("x")
    (work / "secret").chmod(0o600)
    (work / "sub" / os.fsdecode(b"n\n\xff")).write_bytes(b"odd")
    (work / "link").symlink_to("sub/empty")
    (work / "long").symlink_to("x" * 150)
    os.utime(work / "secret", ns=(10**18 + 7, 10**18 + 7))
    plan = transfer.plan_upload(work)
    stats = transfer.upload(link, plan, f"~/{there.name}")
    assert (stats.files, stats.bytes) == (6, plan.total_bytes)
    assert stat.S_IMODE((there / "script.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((there / "secret").stat().st_mode) == 0o600
    assert (there / "secret").stat().st_mtime_ns == 10**18 + 7
    assert (there / "sub" / os.fsdecode(b"n\n\xff")).read_bytes() == b"odd"
    assert (there / "link").readlink() == Path("sub/empty")
    assert (there / "long").readlink() == Path("x" * 150)
    assert list((there / "sub" / "empty").iterdir()) == []
    assert {path.name for path in there.iterdir()} == {"script.sh", "secret", "sub", "link", "long"}


def test_an_empty_plan_makes_the_folder(link: Link, there: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    assert transfer.upload(link, transfer.plan_upload(work), f"~/{there.name}/new").files == 0
    assert (there / "new").is_dir()


def test_a_file_that_cannot_be_placed_on_the_machine_is_named(link: Link, there: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "taken").write_text("x")
    (there / "taken").mkdir()
    with pytest.raises(ConfigError, match="no place") as caught:
        transfer.upload(link, transfer.plan_upload(work), f"~/{there.name}")
    assert "taken" in caught.value.details


def test_a_sync_brings_only_what_is_new(link: Link, there: Path, tmp_path: Path) -> None:
    output, known = tmp_path / "output", Collected()
    for name in ("a", "b"):
        (there / name).write_text(name)
        os.utime(there / name, ns=(10**18, 10**18))
    assert fetch(link, there, output, known=known).files == 2
    (there / "b").write_text("changed")
    os.utime(there / "b", ns=(10**18 + 1, 10**18 + 1))
    again = fetch(link, there, output, known=known)
    assert (again.files, again.unchanged) == (1, 1)
    assert (output / "b").read_text() == "changed"
    (output / "a").unlink()
    assert fetch(link, there, output, known=known).files == 1
    assert (output / "a").read_text() == "a"


def test_a_file_of_this_moment_is_looked_at_again() -> None:
    """Another change could leave its size and, by the clock's coarseness, its time as they are."""
    entry = tarstream.Entry("name", "0", 1, 1, 0o644, "", None, settled=False)
    known = Collected({"name": (1, 1)})
    known.add([entry])
    assert known.known == {}


def test_a_download_tells_of_what_it_left(link: Link, there: Path, tmp_path: Path) -> None:
    (there / "file").write_text("x")
    (there / "dangling").symlink_to("nowhere")
    result = fetch(link, there, tmp_path / "output", "*", "none*", "missing/file")
    assert (result.files, result.bytes) == (1, 1)
    assert result.unmatched_globs == ("none*", "missing/file")
    assert result.skipped == (("dangling", "a link that leads nowhere"),)
    with pytest.raises(ConfigError):
        fetch(link, there, tmp_path / "output", "../*")


def test_a_dropped_line_costs_only_what_was_not_there_yet(
    sshd: PrivateSshd, link: Link, there: Path, tmp_path: Path
) -> None:
    for number in range(40):
        (there / f"{number:02}").write_bytes(os.urandom(MIB))
        os.utime(there / f"{number:02}", ns=(10**18, 10**18))
    drops: list[int] = []
    wire: list[int] = []

    def cut(files: int, size: int) -> None:
        wire.append(size)
        if files >= 8 * (1 + len(drops)) and len(drops) < 2:
            drops.append(files)
            sshd.drop_connections()

    output = tmp_path / "output"
    result = transfer.download(
        link,
        ["*"],
        root=f"~/{there.name}",
        output=output,
        known=Collected(),
        final=True,
        on_progress=cut,
    )
    assert (result.files, len(drops)) == (40, 2)
    assert all((output / path.name).read_bytes() == path.read_bytes() for path in there.iterdir())
    assert {path.name for path in output.iterdir()} == {path.name for path in there.iterdir()}
    assert wire[-1] < 80 * MIB


def test_an_upload_goes_on_after_a_dropped_line(sshd: PrivateSshd, link: Link, there: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for number in range(40):
        (work / f"{number:02}").write_bytes(os.urandom(MIB))
    drops: list[int] = []

    def cut(_: int, size: int) -> None:
        if size > 20 * MIB and not drops:
            drops.append(size)
            sshd.drop_connections()

    transfer.upload(link, transfer.plan_upload(work), f"~/{there.name}", on_progress=cut)
    assert drops
    assert {path.name: path.read_bytes() for path in there.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in work.iterdir()
    }


def spoiled(tmp_path: Path, mode: str, runs: int) -> str:
    """A PATH on which the first runs of python3 are spoiled."""
    real = require("python3")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    wrapper = bin_folder / "python3"
    wrapper.write_text(_SPOILER.format(python=sys.executable, real=real, mode=mode, runs=runs))
    wrapper.chmod(0o755)
    return f"{bin_folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("mode", ["cut", "flip"])
def test_a_spoiled_stream_is_found_and_fetched_again(tmp_path: Path, mode: str) -> None:
    # The first run finds that the program is not there yet, and its empty output cannot be spoiled by much.
    with private_sshd(tmp_path / "sshd", path=spoiled(tmp_path, mode, 2)) as server:
        link = Link(server.endpoint, server.private_key, clock=CLOCK)
        transfer.install(link.session())
        there = server.home / "work"
        there.mkdir()
        for number in range(600):
            (there / str(number)).write_bytes(os.urandom(1000))
        result = fetch(link, there, tmp_path / "output")
        assert (result.files, (server.home / "spoiled").read_text()) == (600, "xx")
        assert all((tmp_path / "output" / path.name).read_bytes() == path.read_bytes() for path in there.iterdir())
        link.close()


def test_a_stream_that_is_always_spoiled_is_given_up(tmp_path: Path) -> None:
    with private_sshd(tmp_path / "sshd", path=spoiled(tmp_path, "cut", 99)) as server:
        link = Link(server.endpoint, server.private_key, clock=CLOCK)
        transfer.install(link.session())
        (server.home / "work").mkdir()
        (server.home / "work" / "file").write_bytes(os.urandom(1000))
        with pytest.raises(transfer.TransferError):
            fetch(link, server.home / "work", tmp_path / "output")
        assert list((tmp_path / "output").iterdir()) == []
        link.close()


def test_what_arrives_damaged_on_the_machine_is_sent_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "bad").write_bytes(b"spoil me")
    (work / "good").write_bytes(b"good")
    with private_sshd(tmp_path / "sshd", path=spoiled(tmp_path, "flip", 1)) as server:
        link = Link(server.endpoint, server.private_key, clock=CLOCK)
        transfer.install(link.session())
        stats = transfer.upload(link, transfer.plan_upload(work), "~/there")
        assert (stats.files, (server.home / "spoiled").read_text()) == (2, "x")
        assert (server.home / "there" / "bad").read_bytes() == b"spoil me"
        link.close()


def test_an_output_that_cannot_be_written_names_it(link: Link, there: Path, tmp_path: Path) -> None:
    (there / "file").write_text("x")
    (tmp_path / "blocked").write_text("")
    with pytest.raises(transfer.OutputError) as caught:
        fetch(link, there, tmp_path / "blocked" / "output")
    assert "blocked" in caught.value.brief
    assert caught.value.exit_code is ExitCode.ARTIFACTS_LOST


def test_a_full_disk_on_the_machine_is_a_clear_error(sshd: PrivateSshd, link: Link, tmp_path: Path) -> None:
    small = sshd.home / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=False).returncode
    ):
        pytest.skip("mounting a small file system is not allowed here")
    try:
        (tmp_path / "big").write_bytes(os.urandom(30 * MIB))
        with pytest.raises(GpuRunnerError, match="the machine cannot write") as caught:
            transfer.upload(link, transfer.plan_upload(tmp_path), "~/small")
        assert "space" in caught.value.details
    finally:
        subprocess.run(["umount", small], check=True)


_FETCH = """\
import re, sys
from pathlib import Path
from provisioner.clock import SystemClock
from provisioner.models import Endpoint
from provisioner.remote import transfer
from provisioner.remote.link import Link
host, port, user, host_key, key_file, root, output = sys.argv[1:]
link = Link(Endpoint(host, int(port), user, host_key), Path(key_file).read_text(), clock=SystemClock())
result = transfer.download(link, ["*"], root=root, output=Path(output), known=transfer.Collected(), final=True)
link.close()
peak_kib = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss counts the parent's too
print(result.files, result.bytes, int(peak_kib) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("files", "size"), [(20_000, 4096), (1, 3 << 30)])
def test_memory_stays_bounded(sshd: PrivateSshd, there: Path, tmp_path: Path, files: int, size: int) -> None:
    for number in range(files):
        folder = there / str(number % 100)
        folder.mkdir(exist_ok=True)
        with (folder / str(number)).open("wb") as file:
            file.truncate(size)
    endpoint = sshd.endpoint
    where = [endpoint.host, str(endpoint.port), endpoint.user, endpoint.host_public_key, str(sshd.key_file)]
    command = [sys.executable, "-c", _FETCH, *where, f"~/{there.name}", str(tmp_path / "output")]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY, timeout=250)
    finally:
        shutil.rmtree(tmp_path / "output", ignore_errors=True)  # too much to keep for a look
    got_files, got_bytes, peak_mib = map(int, done.stdout.split())
    assert (got_files, got_bytes) == (files, files * size)
    assert peak_mib < 150
