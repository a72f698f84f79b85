"""What real jobs, disks and clocks do: each comes to the right end, in bounded time and memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.box import PATIENCE_S, Box, Command, Done, eventually, small_disk
from tests.tools import missing

LARGEST_CONTROLLER_MIB = 150
MIB = 1 << 20


def finish(command: Command, timeout_s: float = PATIENCE_S) -> Done:
    """Wait for the end of a run, which must have stayed small."""
    done = command.wait(timeout_s)
    sys.stdout.write(f"peak of the controller: {done.peak_mib:.0f} MiB\n")
    assert 10 < done.peak_mib < LARGEST_CONTROLLER_MIB, done
    return done


def results(box: Box) -> Path:
    return box.work / "gpu-runner-results" / "gr-test"


def test_the_output_disk_is_full(box: Box) -> None:
    with small_disk(box.base / "disk", "2m") as disk:
        make = "head -c 1000 /dev/zero > small; head -c 9000000 /dev/zero > large"
        output = ("--output", str(disk / "out"), "--artifact", "small", "--artifact", "large")
        done = finish(box.job("--json", *output, "--", "sh", "-c", make))
        assert (done.code, done.document["outcome"]) == (74, "artifacts-missing"), done
        assert "No space left" in str(done.document["error"]), done
        assert not list((disk / "out").rglob("large*")), "half a file must not look like one"
        box.assert_nothing_left()


@pytest.mark.parametrize("obstacle", ["a file in the way", "a read-only disk"])
def test_the_artifact_folder_cannot_be_written(box: Box, obstacle: str) -> None:
    if obstacle == "a read-only disk":
        with small_disk(box.base / "disk", "1m", "ro") as disk:
            refused(box, disk / "out")
    else:
        (box.base / "file").touch()
        refused(box, box.base / "file" / "out")


def refused(box: Box, output: Path) -> None:
    ran = box.base / "ran"
    command = ("sh", "-c", f"touch {ran}; echo made > out")
    done = finish(box.job("--json", "--output", str(output), "--artifact", "out", "--", *command))
    assert (done.code, done.document["outcome"]) in {(74, "artifacts-missing"), (64, "config")}, done
    assert str(output) in str(done.document["error"]), done
    box.assert_nothing_left()


def test_a_hundred_mebibytes_of_log(box: Box) -> None:
    line = "a line of a log that says little and is one of very many"
    done = finish(box.job("--", "sh", "-c", f"yes '{line}' | head -c {100 * MIB}"))
    assert done.code == 0, done.stderr
    assert len(done.stdout) == 100 * MIB
    wanted = (f"{line}\n".encode() * (100 * MIB // len(line)))[: 100 * MIB]
    assert done.stdout == wanted


def test_a_line_of_ten_mebibytes(box: Box) -> None:
    done = finish(box.job("--", "sh", "-c", f"head -c {10 * MIB} /dev/zero | tr '\\0' x"))
    assert done.code == 0, done.stderr
    assert done.stdout == b"x" * (10 * MIB)


def test_binary_output(box: Box) -> None:
    script = f"head -c {3 * MIB} /dev/urandom | tee copy"
    done = finish(box.job("--artifact", "copy", "--", "sh", "-c", script))
    assert done.code == 0, done.stderr
    assert done.stdout == (results(box) / "copy").read_bytes()
    assert len(done.stdout) == 3 * MIB


def test_a_job_that_leaves_daemons_behind(box: Box) -> None:
    daemon = f"setsid env -i sleep 600.{box.nonce} & setsid env -i sh -c 'trap \"\" TERM HUP; sleep 601.{box.nonce}' &"
    done = finish(box.job("--json", "--", "sh", "-c", f"({daemon}); echo left; exit 4"))
    assert (done.code, done.document["job"]["exit_code"]) == (4, 4), done
    assert done.document["job"]["duration_s"] < 10
    box.assert_nothing_left()


def test_a_job_that_ignores_sigterm(box: Box) -> None:
    script = "trap '' TERM INT HUP; echo begun > out; while :; do sleep 0.1; done"
    done = finish(box.job("--json", "--timeout", "1s", "--artifact", "out", "--", "sh", "-c", script))
    assert (done.code, done.document["outcome"]) == (124, "job-timed-out"), done
    assert done.document["job"]["duration_s"] < 20
    assert (results(box) / "out").read_text() == "begun\n"
    box.assert_nothing_left()


NAMES = (
    b"line\nbreak",
    b"not utf-8 \xff\xfe\x80",
    b"-rf",
    b" blanks ",
    b"quote'\"\\",
    "günther-模型".encode(),
    b"tab\tand\rreturn",
    b"*?[x]",
    b"x" * 255,
)


def test_names_that_nobody_should_use_go_there_and_back(box: Box) -> None:
    folder = os.fsencode(box.work) + b"/in\n\xff"
    os.mkdir(folder)  # noqa: PTH102  # bytes
    for number, name in enumerate(NAMES):
        with open(folder + b"/" + name, "w") as file:  # noqa: PTH123
            file.write(str(number))
    done = finish(box.job("--artifact", "back/**", "--", "sh", "-c", "cp -r in* back; ls back | wc -l >&2"))
    assert done.code == 0, done
    back = os.fsencode(results(box)) + b"/back"
    assert sorted(os.listdir(back)) == sorted(NAMES)  # noqa: PTH208
    for number, name in enumerate(NAMES):
        with open(back + b"/" + name) as file:  # noqa: PTH123
            assert file.read() == str(number)


def test_twenty_thousand_small_files_there_and_back(box: Box) -> None:
    for number in range(20_000):
        path = box.work / f"{number % 100:02}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n")
    done = finish(box.job("--json", "--artifact", "[0-9]*/**", "--", "sh", "-c", "ls | wc -l"), 120)
    assert (done.code, done.document["artifacts"]["files"]) == (0, 20_000), done
    for number in range(0, 20_000, 997):
        assert (results(box) / f"{number % 100:02}" / f"{number}.txt").read_text() == f"{number}\n"
    box.assert_nothing_left()


LARGE_BYTES = 3 << 30


@pytest.fixture
def roomy_box() -> Iterator[Box]:
    """In memory where there is enough of it, so that the disk is not what is measured."""
    memory = Path("/dev/shm")  # noqa: S108  # a folder of its own inside
    folders = [path for path in (memory, Path(tempfile.gettempdir())) if free_bytes(path) > 3 * LARGE_BYTES]
    if not folders:
        pytest.skip("there is no room for two copies of a 3 GiB file")
    made = Box(Path(tempfile.mkdtemp(prefix="gr-", dir=folders[0])))
    try:
        yield made
    finally:
        made.close()


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free if folder.is_dir() else 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["there", "back"])
def test_a_file_of_three_gibibytes(roomy_box: Box, way: str) -> None:
    box = roomy_box
    marks = {0: b"begin", (1 << 31) - 2: b"around 2 GiB", LARGE_BYTES - 3: b"end"}
    make = f"{sys.executable} make.py"
    (box.work / "make.py").write_text(
        f"with open('weights', 'wb') as file:\n    file.truncate({LARGE_BYTES})\n"
        f"    for at, mark in {marks}.items():\n        file.seek(at)\n        file.write(mark)\n"
    )
    look = f"{sys.executable} look.py"
    (box.work / "look.py").write_text(
        "import os\nwith open('weights', 'rb') as file:\n    print(os.fstat(file.fileno()).st_size)\n"
        f"    print([file.seek(at) and False or file.read(len(mark)) for at, mark in {marks}.items()])\n"
    )
    if way == "there":
        subprocess.run(make.split(), cwd=box.work, check=True)
        done = finish(box.job("--", *look.split()), 240)
        assert done.stdout.decode().splitlines() == [str(LARGE_BYTES), str([*marks.values()])], done
    else:
        done = finish(box.job("--json", "--artifact", "weights", "--", *make.split()), 240)
        assert done.document["artifacts"]["bytes"] == LARGE_BYTES, done
        shutil.copy(box.work / "look.py", results(box))
        told = subprocess.run(look.split(), cwd=results(box), check=True, capture_output=True)
        assert told.stdout.decode().splitlines() == [str(LARGE_BYTES), str([*marks.values()])]
    assert done.code == 0, done
    box.assert_nothing_left()


def test_a_reader_of_stdout_that_goes_away(box: Box) -> None:
    reader, writer = os.pipe()
    script = "seq 1 200000; echo done > out; exit 5"
    command = box.job("--artifact", "out", "--", "sh", "-c", script, stdout=writer)
    os.close(writer)
    head = subprocess.run(["head", "-n", "1"], stdin=reader, capture_output=True, check=True)
    os.close(reader)
    assert head.stdout == b"1\n"
    done = finish(command)
    assert done.code == 5, done
    assert "the log cannot be shown any more" in done.stderr
    assert (results(box) / "out").read_text() == "done\n"
    box.assert_nothing_left()


def test_a_reader_of_the_document_that_goes_away(box: Box) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = box.job("--json", "--", "sh", "-c", "exit 5", stdout=writer)
    os.close(writer)
    done = finish(command)
    assert done.code == 5, done
    assert "proven gone" in done.stderr
    box.assert_nothing_left()


def test_the_log_goes_to_a_full_disk(box: Box) -> None:
    with small_disk(box.base / "disk", "64k") as disk, (disk / "log").open("wb") as log:
        command = box.job("--artifact", "out", "--", "sh", "-c", "seq 1 50000; echo made > out", stdout=log.fileno())
        done = finish(command)
    assert done.code == 0, done
    assert "the log cannot be shown any more" in done.stderr
    assert (results(box) / "out").read_text() == "made\n"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 70), ("exit 5", 5)])
def test_the_document_goes_to_a_full_disk(box: Box, script: str, code: int) -> None:
    with Path("/dev/full").open("wb") as full:
        done = finish(box.job("--json", "--", "sh", "-c", script, stdout=full.fileno()))
    assert done.code == code, done
    assert "could not be written" in done.stderr
    assert "proven gone" in done.stderr
    box.assert_nothing_left()


def test_the_machines_disk_is_full(box: Box) -> None:
    with small_disk(box.machines, "4m"):
        script = "cat /dev/zero > filler 2>/dev/null; seq 1 1000; echo more > other || echo no room; rm filler; exit 7"
        done = finish(box.job("--json", "--", "sh", "-c", script))
        assert (done.code, done.document["job"]["exit_code"]) == (7, 7), done
        assert done.document["release"]["confirmed"]
        box.assert_nothing_left()


def test_the_machines_disk_stays_full(box: Box) -> None:
    with small_disk(box.machines, "4m"):
        script = "cat /dev/zero > filler 2>/dev/null; seq 1 100000; exit 7"
        done = finish(box.job("--json", "--artifact", "hello.txt", "--", "sh", "-c", script))
        assert (done.code, done.document["job"]["exit_code"]) == (7, 7), done
        assert done.document["job"]["log_dropped_bytes"] > 0
        assert (results(box) / "hello.txt").read_text() == "hello\n"
        box.assert_nothing_left()


def test_an_upload_that_has_no_room_there(box: Box) -> None:
    (box.work / "big").write_bytes(os.urandom(8 * MIB))
    with small_disk(box.machines, "4m"):
        done = finish(box.job("--json", "--", "true"))
        assert done.code not in {0, 79}, done
        assert "No space left" in str(done.document["error"]), done
        box.assert_nothing_left()


class FakeTime:
    """A wall clock that a test can set, for the controller and for the guard."""

    def __init__(self, box: Box) -> None:
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            missing("libfaketime")
        self._file = box.base / "time"
        self.jump(0)
        self.env = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        # This libfaketime refuses the call behind time.sleep once the monotonic clock is left alone.
        site = box.base / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
        )
        python = box.base / "python"
        exports = "".join(f"export {name}='{value}'\n" for name, value in self.env.items())
        exports += f'export PYTHONPATH="{site}:$PYTHONPATH"\n'
        with_site = '[ "$1" = -S ] && shift\n'
        python.write_text(f'#!/bin/sh\n{exports}{with_site}exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        # The guard is started with the interpreter of the controller, and with nothing of its environment.
        start = f"import sys; sys.executable = {str(python)!r}; from provisioner.cli import main; main()"
        self.program = (str(python), "-c", start)

    def jump(self, seconds: int) -> None:
        """Set the clock so far off."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}\n")
        temporary.replace(self._file)


@pytest.fixture
def faketime(box: Box) -> FakeTime:
    made = FakeTime(box)
    made.jump(3600)
    code = "import time; print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())"
    told, plain = (
        subprocess.run([program, "-c", code], capture_output=True, check=True, text=True).stdout.split()
        for program in (made.program[0], sys.executable)
    )
    assert float(told[0]) - float(plain[0]) == pytest.approx(3600, abs=10)
    assert float(told[1]) - float(plain[1]) == pytest.approx(0, abs=10)
    made.jump(0)
    return made


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_clock_that_jumps_moves_no_time_out(box: Box, faketime: FakeTime, jump_s: int) -> None:
    script = "echo begun; exec sleep 60"
    command = box.start("run", "--json", "--timeout", "4s", "--", "sh", "-c", script, program=faketime.program)
    command.until(lambda: "begun" in command.stderr, "the job")
    faketime.jump(jump_s)
    done = finish(command)
    assert (done.code, done.document["outcome"]) == (124, "job-timed-out"), done
    assert 3.9 < done.document["job"]["duration_s"] < 8
    assert 4 < done.document["timeline"]["released_s"] < 30
    box.assert_nothing_left()


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_clock_that_jumps_moves_no_deadline_of_the_guard(box: Box, faketime: FakeTime, jump_s: int) -> None:
    limits = ("--heartbeat-timeout", "5s", "--on-controller-loss", "end", "--idle-timeout", "5s")
    command = box.job(*limits, "--", "sh", "-c", "echo begun; exec sleep 60", program=faketime.program)
    command.until_log(b"begun")
    guard_environment = Path(f"/proc/{box.guard()}/environ").read_bytes()
    assert b"libfaketime" in guard_environment
    faketime.jump(jump_s)
    assert not eventually(lambda: command.process.poll() is not None, 3), "it lives on"
    (machine,) = box.run("list", "--json").document["machines"]
    assert 3000 < machine["ends_in_s"] < 3700
    command.process.kill()
    assert not eventually(lambda: not (box.machine() / "home").exists(), 2.5), "no deadline came early"
    assert eventually(lambda: not (box.machine() / "home").exists(), 10), "no deadline was put off"
    state = (box.machine() / "state.json").read_text()
    assert re.search(r"controller", state), state


def test_a_wrong_clock_from_the_start(box: Box, faketime: FakeTime) -> None:
    faketime.jump(-86400)
    done = finish(box.job("--json", "--artifact", "out", "--", "sh", "-c", "date > out", program=faketime.program))
    assert (done.code, done.document["artifacts"]["files"]) == (0, 1), done
    assert hashlib.sha256((results(box) / "out").read_bytes()).hexdigest()
    box.assert_nothing_left()
