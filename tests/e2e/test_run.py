"""``run`` and the commands around it, as a user types them: real processes, real machines, nothing left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from provisioner.errors import Outcome
from tests.e2e.box import Box, Command, Done, eventually, small_disk
from tests.tools import require

MACHINE_KEYS = {"provider", "region", "zone", "id", "instance_type", "market", "price_usd_hour"}
TIMELINE_KEYS = {"placed_s", "ready_s", "job_started_s", "job_ended_s", "collected_s", "released_s"}


SILENT_SERVER = """
import socket, sys
options = dict(word.split("=", 1) for word in sys.argv if "=" in word)
server = socket.create_server((options["ListenAddress"], int(options["Port"])))
connections = []
while True:
    connections.append(server.accept())
"""
"""An sshd that takes connections and says nothing."""


def check_document(document: dict[str, Any]) -> dict[str, Any]:
    """The contract of ``run --json``."""
    assert document["outcome"] in {str(outcome) for outcome in Outcome}
    assert re.fullmatch(r"gr-[a-z0-9-]+", document["lease_id"])
    assert isinstance(document["exit_code"], int)
    machine, job, release = document["machine"], document["job"], document["release"]
    assert machine is None or machine.keys() >= MACHINE_KEYS
    assert document["timeline"].keys() >= TIMELINE_KEYS
    reached = [value for value in document["timeline"].values() if value is not None]
    assert reached == sorted(reached)
    assert job is None or job.keys() >= {"exit_code", "timed_out", "duration_s"}
    assert document["artifacts"].keys() >= {"files", "bytes", "seconds", "directory"}
    assert "cost_usd" in document
    assert release is None or release.keys() >= {"confirmed", "billing_stopped", "seconds"}
    return document


def run_json(box: Box, *args: str, **options: Any) -> tuple[Done, dict[str, Any]]:
    done = box.run("run", "--lease-id", "gr-test", "--json", *args, **options)
    return done, check_document(done.document)


def results(box: Box) -> Path:
    return box.work / "gpu-runner-results" / "gr-test"


@pytest.mark.parametrize(
    ("script", "code", "outcome"),
    [("exit 0", 0, "ok"), ("exit 3", 3, "job-failed"), ("kill -KILL $$", 137, "job-failed")],
)
def test_the_jobs_exit_code_passes_through(box: Box, script: str, code: int, outcome: str) -> None:
    done, document = run_json(box, "--artifact", "out", "--", "sh", "-c", f"echo seen; echo made > out; {script}")
    assert done.code == document["exit_code"] == document["job"]["exit_code"] == code, done
    assert (document["outcome"], document["error"]) == (outcome, None)
    assert document["release"] == document["release"] | {"confirmed": True, "billing_stopped": True, "left": []}
    assert document["artifacts"]["files"] == 1
    assert document["artifacts"]["directory"] == str(results(box))
    assert (results(box) / "out").read_text() == "made\n"
    assert "seen" in done.stderr
    assert None not in document["timeline"].values()
    box.assert_nothing_left()


def test_the_log_is_all_there_is_on_stdout_and_progress_is_on_stderr(box: Box) -> None:
    done = box.run("run", "--", "sh", "-c", "echo one; echo two >&2; pwd; cat hello.txt")
    lines = done.stdout.decode().splitlines()
    assert [*lines[:2], *lines[3:]] == ["one", "two", "hello"]
    assert re.fullmatch(rf"{re.escape(str(box.machines))}/gr-[a-z0-9]{{10}}-1/home/work", lines[2])
    steps = re.findall(r"s\] (\w+)  ", done.stderr)
    assert steps == ["place", "boot", "upload", "run", "collect", "release"]
    assert re.search(r"machine +proven gone", done.stderr)
    box.assert_nothing_left()


def test_a_time_out_gives_124_and_its_artifacts(box: Box) -> None:
    script = "echo half > out; exec sleep 60"
    done, document = run_json(box, "--timeout", "2s", "--artifact", "out", "--", "sh", "-c", script)
    assert (done.code, document["outcome"], document["job"]["timed_out"]) == (124, "job-timed-out", True)
    assert 2.0 <= document["job"]["duration_s"] < 5.0
    assert (results(box) / "out").read_text() == "half\n"
    box.assert_nothing_left()


def test_a_set_up_that_fails_ends_the_job_in_its_name(box: Box) -> None:
    setup = ("--setup", "echo ready > state", "--setup", "cat state; exit 9", "--setup", "echo never")
    done, document = run_json(box, *setup, "--", "echo", "not reached")
    assert (done.code, document["outcome"], document["job"]["failed_in"]) == (9, "job-failed", "setup")
    assert "ready" in done.stderr
    assert "never\n" not in done.stderr
    assert "exit code 9 of the set-up" in done.stderr


def test_a_set_up_that_works_comes_first(box: Box) -> None:
    done = box.run("run", "--setup", "echo ready > state", "--", "cat", "state")
    assert (done.code, done.stdout) == (0, b"ready\n"), done


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("./hello.txt", 126)])
def test_a_command_that_cannot_be_started(box: Box, command: str, code: int) -> None:
    done = box.run("run", "--", command)
    assert done.code == code, done
    assert command in done.stdout.decode()
    box.assert_nothing_left()


def test_variables_reach_the_job(box: Box) -> None:
    script = 'echo "$A|$B|$GPU_RUNNER_LEASE|${C-unset}"'
    options = ("--lease-id", "gr-test", "--env", "A=a b=c", "--env", "B")
    done = box.run("run", *options, "--", "sh", "-c", script, env={"B": "from here", "C": "stays here"})
    assert done.stdout == b"a b=c|from here|gr-test|unset\n", done


SECRET = "s3cr3t-0123456789-värdefull"


def test_a_secret_reaches_the_job_and_nothing_else(box: Box) -> None:
    script = 'printf %s "$KEY" | md5sum; echo "<$KEY>"; while [ ! -e go ]; do sleep 0.05; done; echo "again $KEY"'
    command = box.job("--json", "--secret", "KEY", "--", "sh", "-c", script, env={"KEY": SECRET})
    command.until(lambda: "<***>" in command.stderr, "the masked line")
    assert argument_lists_with(SECRET) == []
    assert files_with(box.machines, SECRET) == []
    assert files_with(box.state, SECRET) == []
    shown = box.run("logs", "gr-test", env=box.from_nowhere())
    assert b"<***>" in shown.stdout
    (box.home() / "work" / "go").touch()
    done = command.wait()
    assert done.code == 0, done
    assert "again ***" in done.stderr
    for text in (done.stdout, done.stderr.encode(), shown.stdout):
        assert SECRET.encode() not in text
    assert md5(SECRET) in done.stderr
    assert files_with(box.base, SECRET) == []


def md5(text: str) -> str:
    import hashlib

    return hashlib.md5(text.encode()).hexdigest()  # noqa: S324  # only to know it again


def argument_lists_with(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] if text.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


def files_with(folder: Path, text: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_usage_mistakes_are_told_together_and_as_json(box: Box) -> None:
    done = box.run("run", "--json", "--timeout", "soon", "--provder", "local", "--", "true")
    assert done.code == 64
    done = box.run("run", "--json", "--timeout", "soon", "--market", "flea", "--", "true")
    assert done.code == done.document["exit_code"] == 64
    assert done.document["outcome"] == "config"
    told = json.dumps(done.document["error"])
    assert "timeout" in told
    assert "flea" in told
    assert not box.machines.exists()


def test_no_command_is_a_usage_mistake(box: Box) -> None:
    done = box.run("run", "--json")
    assert (done.code, done.document["outcome"]) == (64, "config"), done
    assert "after --, as in: gpu-runner run -- " in done.document["error"]["details"], done


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_made(box: Box) -> None:
    done = box.run("run", "--json", "--gpu", "B200:7", "--", "true")
    assert done.code in {64, 69}, done
    assert done.document["outcome"] in {"config", "no-capacity"}
    assert "gpu-runner offers" in done.document["error"]["resolution"]
    assert not box.machines.exists()


def test_artifacts_that_match_nothing_are_a_warning_or_an_error(box: Box) -> None:
    done, document = run_json(box, "--artifact", "nothing/*", "--", "true")
    assert (done.code, document["outcome"]) == (0, "ok")
    assert "nothing/*" in done.stderr
    done, document = run_json(box, "--artifact", "nothing/*", "--require-artifacts", "--", "true")
    assert (done.code, document["outcome"]) == (74, "artifacts-missing")
    assert "nothing/*" in document["error"]["brief"]
    assert document["artifacts"]["complete"] is False
    done, document = run_json(box, "--artifact", "nothing/*", "--require-artifacts", "--", "sh", "-c", "exit 3")
    assert (done.code, document["outcome"]) == (3, "job-failed")


def test_artifacts_come_home_while_the_job_runs_and_again_at_its_end(box: Box) -> None:
    script = "echo 1 > out; while [ ! -e go ]; do sleep 0.05; done; echo 2 > out"
    command = box.job("--sync-every", "1s", "--artifact", "out", "--", "sh", "-c", script)
    home = results(box) / "out"
    command.until(lambda: home.exists() and home.read_text() == "1\n", "the artifact")
    assert command.process.poll() is None
    (box.home() / "work" / "go").touch()
    assert command.wait().code == 0
    assert home.read_text() == "2\n"


def test_a_lost_machine_costs_at_most_the_last_sync(box: Box) -> None:
    script = "echo 1 > out; exec sleep 60"
    command = box.job("--json", "--sync-every", "1s", "--artifact", "out", "--", "sh", "-c", script)
    command.until((results(box) / "out").exists, "the artifact")
    assert box.run("down", "--now", "gr-test", env=box.from_nowhere()).code == 0
    done = command.wait()
    document = check_document(done.document)
    assert (done.code, document["outcome"]) == (76, "machine-lost"), done
    assert document["release"]["confirmed"]
    assert (results(box) / "out").read_text() == "1\n"
    box.assert_nothing_left()


def test_keep_on_failure_keeps_the_machine_for_a_look(box: Box) -> None:
    require("ssh")
    done = box.run("run", "--lease-id", "gr-test", "--keep-on-failure", "5m", "--", "sh", "-c", "echo clue > f; exit 3")
    assert done.code == 3, done
    assert "gpu-runner ssh gr-test" in done.stderr
    looked = box.run("ssh", "gr-test", "--", "cat", "work/f")
    assert (looked.code, looked.stdout) == (0, b"clue\n"), looked
    (machine,) = box.run("list", "--json").document["machines"]
    assert machine["ends_in_s"] <= 300
    assert box.run("down", "gr-test").code == 0
    box.assert_nothing_left()


def test_keep_on_failure_releases_after_success_and_ends_by_itself(box: Box) -> None:
    assert box.run("run", "--keep-on-failure", "5m", "--", "true").code == 0
    box.assert_nothing_left()
    assert box.run("run", "--lease-id", "gr-test", "--keep-on-failure", "2s", "--", "false").code == 1
    assert eventually(lambda: not (box.machine() / "home").exists(), 15), box.leftovers()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_detach_logs_ssh_attach(box: Box, elsewhere: bool) -> None:  # noqa: FBT001  # a parameter of the test
    require("ssh")
    env = box.from_nowhere() if elsewhere else {}
    script = "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over; echo made > out; exit 5"
    left = box.job("--json", "--detach", "--artifact", "out", "--", "sh", "-c", script).wait()
    assert left.code == 0, left
    document = check_document(left.document)
    assert document["detached"]
    assert not document["release"]["confirmed"]
    assert document["release"]["kept_for_s"] > 60

    assert eventually(lambda: box.run("logs", "gr-test", env=env).stdout == b"begun\n", 20)
    looked = box.run("ssh", "gr-test", "--", "echo $GPU_RUNNER_LEASE; exit 4", env=env)
    assert (looked.code, looked.stdout) == (4, b"gr-test\n"), looked
    collected = box.run("collect", "--json", "gr-test", env=env)
    assert collected.code == 0, collected
    assert collected.document["detached"], "its job still runs: it must be left alone"

    attached = box.start("attach", "gr-test", "--offset", "6", "--output", "home", env=env)
    attached.until_step("boot")
    (box.home() / "work" / "go").touch()
    done = attached.wait()
    assert (done.code, done.stdout) == (5, b"over\n"), done
    assert (box.work / "home" / "out").read_text() == "made\n"
    assert box.on_host() == []
    if not elsewhere:
        box.assert_nothing_left()


def test_collect_of_a_job_that_has_ended_brings_everything_home_and_releases(box: Box) -> None:
    left = box.job("--detach", "--artifact", "out", "--", "sh", "-c", "echo made > out; exit 6").wait()
    assert left.code == 0, left
    assert eventually((box.home() / "work" / "out").exists)
    time.sleep(0.5)
    done = box.run("collect", "--json", "gr-test", env=box.from_nowhere())
    assert (done.code, done.document["outcome"]) == (6, "job-failed"), done
    assert done.document["release"]["confirmed"]
    assert (results(box) / "out").read_text() == "made\n"
    assert box.on_host() == []


def test_attach_to_a_run_that_is_alive_is_refused(box: Box) -> None:
    command = box.job("--", "sh", "-c", "echo begun; exec sleep 60")
    command.until_log(b"begun")
    command.until(lambda: box.run("list", "--json").document["machines"][0]["controller_seen_s"] is not None, "a beat")
    done = box.run("attach", "gr-test", env=box.from_nowhere())
    assert done.code == 64, done
    assert "held by another" in done.stderr
    assert command.process.poll() is None
    assert box.run("down", "gr-test").code == 0
    assert command.wait().code == 143


def test_attach_after_the_controller_was_killed(box: Box) -> None:
    command = box.job(
        "--on-controller-loss", "finish", "--", "sh", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done"
    )
    command.until_log(b"begun")
    command.signal(signal.SIGKILL)
    attached = box.start("attach", "--take-over", "gr-test")
    attached.until_log(b"begun")
    (box.home() / "work" / "go").touch()
    assert attached.wait().code == 0
    assert box.on_host() == []


def test_a_lease_that_is_not_there_is_a_usage_mistake(box: Box) -> None:
    for name in ("logs", "ssh", "attach", "collect"):
        done = box.run(name, "gr-nothing")
        assert done.code == 64, done
        assert "there is no machine of lease gr-nothing" in done.stderr
        assert "gpu-runner list" in done.stderr


def test_down_from_another_terminal_ends_a_run_cleanly_with_its_artifacts_so_far(box: Box) -> None:
    script = f"echo so far > out; echo begun; exec sleep 600.{box.nonce}"
    command = box.job("--json", "--artifact", "out", "--", "sh", "-c", script)
    command.until(lambda: "begun" in command.stderr, "the job")
    command.until(lambda: box.run("list", "--json").document["machines"][0]["controller_seen_s"] is not None, "a beat")
    down = box.run("down", "--json", "gr-test", env=box.from_nowhere())
    assert down.code == 0, down
    (lease,) = down.document["leases"]
    assert (lease["lease_id"], lease["was_there"], lease["release"]["confirmed"]) == ("gr-test", True, True)
    done = command.wait()
    document = check_document(done.document)
    assert (done.code, document["outcome"]) == (143, "cancelled"), done
    assert "gpu-runner down" in document["error"]["brief"]
    assert (results(box) / "out").read_text() == "so far\n"
    box.assert_nothing_left()


def test_down_of_what_is_gone_is_a_success_that_says_so(box: Box) -> None:
    done = box.run("down", "gr-nothing", "gr-nothing2")
    assert done.code == 0, done
    assert done.stderr.count("gone already") == 2
    (lease,) = box.run("down", "--json", "gr-nothing").document["leases"]
    assert (lease["was_there"], lease["release"]["confirmed"]) == (False, True)


def test_down_finds_a_machine_whose_guard_was_killed(box: Box) -> None:
    assert box.job("--detach", "--", "sh", "-c", f"exec sleep 600.{box.nonce}").wait().code == 0
    os.kill(box.guard(), signal.SIGKILL)
    assert box.run("down", "gr-test", env=box.from_nowhere()).code == 0
    assert box.on_host() == []


def test_the_second_of_two_runs_with_one_lease_refuses_and_disturbs_nothing(box: Box) -> None:
    first = box.job("--", "sh", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over")
    first.until_log(b"begun")
    second = box.job("--json", "--", "echo", "second").wait()
    assert (second.code, second.document["outcome"]) == (64, "config"), second
    assert "held by another gpu-runner" in second.document["error"]["brief"]
    assert "gpu-runner down gr-test" in second.document["error"]["resolution"]
    (box.home() / "work" / "go").touch()
    done = first.wait()
    assert (done.code, done.stdout) == (0, b"begun\nover\n"), done
    box.assert_nothing_left()


def test_of_two_runs_at_the_same_moment_one_wins(box: Box) -> None:
    commands = [box.job("--", "sh", "-c", "echo mine; sleep 2") for _ in range(3)]
    done = [command.wait() for command in commands]
    assert sorted(one.code for one in done) == [0, 64, 64], "\n".join(map(str, done))
    assert [one.stdout for one in done if one.code == 0] == [b"mine\n"]
    box.assert_nothing_left()


@pytest.fixture
def unreadable(box: Box) -> Iterator[Command]:
    """A run whose provider cannot be read any more once its job has begun."""
    command = box.job(
        "--json", "--artifact", "out", "--", "sh", "-c", f"echo made > out; echo begun; sleep 600.{box.nonce}"
    )
    command.until(lambda: "begun" in command.stderr, "the job")
    box.machines.chmod(0o777)  # others could write there: the provider trusts nothing it finds in it
    yield command
    box.machines.chmod(0o700)


def test_a_release_that_cannot_be_confirmed_gives_79_and_says_what_to_do(box: Box, unreadable: Command) -> None:
    unreadable.signal(signal.SIGTERM)
    done = unreadable.wait(90)
    document = check_document(done.document)
    assert (done.code, document["outcome"]) == (79, "release-unconfirmed"), done
    assert not document["release"]["confirmed"]
    assert not document["release"]["billing_stopped"]
    assert document["machine"]["id"] == "gr-test-1"
    assert "gr-test-1" in document["error"]["brief"]
    assert box.processes() == [], "what is known by name is ended all the same"
    assert "gpu-runner down gr-test" in document["error"]["resolution"]
    assert "gr-test-1" in done.stderr
    assert "gpu-runner down gr-test" in done.stderr
    assert box.run("cleanup").code == 79
    listed = box.run("list")
    assert listed.code == 75, listed
    assert "not this user's own" in listed.stderr
    box.machines.chmod(0o700)
    assert box.run("down", "gr-test").code == 0
    box.assert_nothing_left()


def test_a_broken_sshd_is_made_up_for(box: Box) -> None:
    tools = box.base / "tools"
    tools.mkdir()
    (tools / "sshd").write_text("#!/bin/sh\nexit 1\n")
    (tools / "sshd").chmod(0o755)
    done = box.run("run", "--", "echo", "works", env={"PATH": f"{tools}:{os.environ['PATH']}"})
    assert (done.code, done.stdout) == (0, b"works\n"), done
    box.assert_nothing_left()


def test_a_machine_that_never_answers_is_not_waited_for_once_its_guard_has_ended_it(box: Box) -> None:
    tools = box.base / "tools"
    tools.mkdir()
    (tools / "sshd").write_text(f"#!{sys.executable}\n{SILENT_SERVER}")
    (tools / "sshd").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    done = box.run("run", "--json", "--fuse", "2s", "--", "true", env={"PATH": path}, timeout_s=40.0)
    assert (done.code, done.document["outcome"]) == (72, "boot-failed"), done
    assert "ended before it could be used" in done.document["error"]["brief"]
    box.assert_nothing_left()


def test_a_machine_that_dies_while_it_starts(box: Box) -> None:
    command = box.job("--json", "--", "sleep", "60")
    for pid in command.until(box.processes, "its first process"):
        os.kill(pid, signal.SIGKILL)
    done = command.wait()
    document = check_document(done.document)
    assert (done.code, document["outcome"]) in {(72, "boot-failed"), (76, "machine-lost")}, done
    assert document["release"]["confirmed"]
    box.assert_nothing_left()


def test_no_room_for_a_machine(box: Box) -> None:
    with small_disk(box.machines, "4k"):
        done = box.run("run", "--json", "--", "true")
        document = check_document(done.document)
        assert (done.code, document["outcome"]) == (75, "internal"), done
        assert "No space left" in document["error"]["details"]
        box.assert_nothing_left()


def test_an_expired_lease_is_swept_by_the_next_run(box: Box) -> None:
    assert box.job("--detach", "--", "sleep", f"600.{box.nonce}").wait().code == 0
    os.kill(box.guard(), signal.SIGKILL)
    tags = json.loads((box.machine() / "machine.json").read_text())
    tags["lease"]["ttl_s"] = 1.0
    (box.machine() / "machine.json").write_text(json.dumps(tags))
    done = box.run("run", "--", "true")
    assert done.code == 0, done
    assert "swept gr-test: past its hard deadline" in done.stderr
    assert box.on_host() == []


def test_a_sweep_does_not_slow_the_start(box: Box) -> None:
    for number in range(8):
        (box.machines / f".gone-gr-old{number}-1-00000000").mkdir(parents=True)
    box.machines.chmod(0o700)
    quick, document = run_json(box, "--", "true")
    assert quick.code == 0, quick
    assert document["timeline"]["placed_s"] < 3.0


def test_list(box: Box) -> None:
    assert box.run("list").stdout == b"no machines, nothing left over\n"
    assert box.run("list", "--json").document == {"machines": [], "residue": [], "unread": []}
    left = box.run("run", "--lease-id", "gr-test", "--label", "team=vision", "--detach", "--", "sleep", "60")
    assert left.code == 0, left
    (box.machines / ".gone-gr-old-1-00000000").mkdir()
    document = box.run("list", "--json", env=box.from_nowhere()).document
    (machine,), (residue,) = document["machines"], document["residue"]
    assert machine == machine | {
        "lease_id": "gr-test",
        "provider": "local",
        "id": "gr-test-1",
        "state": "running",
        "attempt": 1,
        "labels": {"team": "vision"},
        "releasing": False,
        "controller_seen_s": None,
    }
    assert 3000 < machine["ends_in_s"] < 3700
    assert (residue["lease_id"], residue["kind"]) == ("gr-old", "folder")
    text = box.run("list").stdout.decode()
    assert re.search(r"^gr-test +running +local/\S+ +cpu ", text, re.MULTILINE), text
    assert re.search(r"^gr-old +folder ", text, re.MULTILINE), text
    assert box.run("down", "gr-test", "gr-old").code == 0
    box.assert_nothing_left()


def test_cleanup_leaves_what_lives_and_takes_what_does_not(box: Box) -> None:
    assert box.run("cleanup").stdout == b"nothing to clean up\n"
    assert box.job("--detach", "--", "sleep", "60").wait().code == 0
    (box.machines / ".gone-gr-old-1-00000000").mkdir()
    dry = box.run("cleanup", "--dry-run", "--json").document
    assert [(f["lease_id"], f["verdict"]) for f in dry["removed"]] == [("gr-old", "remove")]
    assert [(f["lease_id"], f["verdict"]) for f in dry["kept"]] == [("gr-test", "keep")]
    assert (box.machines / ".gone-gr-old-1-00000000").exists()
    done = box.run("cleanup", "--json", env=box.from_nowhere())
    document = done.document
    assert (done.code, document["outcome"], document["dry_run"]) == (0, "ok", False)
    assert (document["failed"], document["unread"]) == ([], [])
    assert [f["lease_id"] for f in document["removed"]] == ["gr-old"]
    assert [path.name for path in box.machines.iterdir()] == ["gr-test-1"]
    assert "kept" in box.run("cleanup").stdout.decode()


def test_cleanup_takes_a_machine_that_died(box: Box) -> None:
    assert box.job("--detach", "--", "sleep", f"600.{box.nonce}").wait().code == 0
    for pid in box.processes():
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not box.processes())
    done = box.run("cleanup", env=box.from_nowhere())
    assert re.search(r"removed +gr-test +machine +local/\S+ +gr-test-1 +its guard died", done.stdout.decode()), done
    assert box.on_host() == []


def test_doctor(box: Box) -> None:
    done = box.run("doctor", "--json")
    assert done.code == 0, done
    checks = {check["name"]: check for group in done.document["checks"].values() for check in group}
    assert {"python", "git", "ssh", "state folder", "cleanup", "inventory"} <= checks.keys()
    assert checks["cleanup"]["status"] == "warn"
    assert "gpu-runner cleanup" in checks["cleanup"]["resolution"]
    assert box.run("cleanup").code == 0
    text = box.run("doctor").stdout.decode()
    assert re.search(r"ok +cleanup +last ran \S+ ago", text), text
    box.machines.mkdir(exist_ok=True)
    box.machines.chmod(0o777)
    assert box.run("doctor").code == 72


def test_what_is_uploaded(box: Box) -> None:
    (box.work / ".gitignore").write_text("ignored\n")
    (box.work / "ignored").write_text("x")
    (box.work / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (box.work / "run.sh").chmod(0o755)
    (box.work / "link").symlink_to("hello.txt")
    done = box.run("run", "--", "sh", "-c", "ls -A; readlink link; ./run.sh")
    assert done.stdout.decode().split() == [".gitignore", "hello.txt", "link", "run.sh", "hello.txt", "ran"], done


def test_another_work_folder_and_output(box: Box) -> None:
    other = box.base / "other"
    other.mkdir()
    (other / "a").write_text("from there")
    done = box.run("run", "--workdir", str(other), "--output", str(box.base / "home"), "--artifact", "a", "--", "ls")
    assert (done.code, done.stdout) == (0, b"a\n"), done
    assert "is not in a git repository" in done.stderr
    assert (box.base / "home" / "a").read_text() == "from there"


def test_keys_and_records_are_private_while_it_runs(box: Box) -> None:
    command = box.job("--", "sh", "-c", "echo begun; sleep 60")
    command.until_log(b"begun")
    secret = [box.machine() / "host_key", box.machine() / "authorized_keys", *box.state.rglob("gr-test/*/*")]
    for path in (box.machines, box.machine(), *box.state.rglob("gr-test/*"), *secret):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    started = next(box.state.rglob("lease.json"))
    age_s = datetime.now(timezone.utc) - datetime.fromisoformat(json.loads(started.read_text())["started_at"])
    assert age_s.total_seconds() < 60
    shutil.rmtree(box.state)  # a convenience, never the truth
    command.signal(signal.SIGTERM)
    assert command.wait().code == 143
    box.assert_nothing_left()
