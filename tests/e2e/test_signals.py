"""Signals to the controller at every step: the release is asked for in time, and nothing is left."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.box import Box, Command, eventually

STEPS = ("place", "boot", "upload", "run", "collect", "release")
BIG_BYTES = 600 << 20
PROMISE_S = 2.0
NOISE_S = 4.0
"""The promise is 2 s from the signal to the request; so much a busy machine may add to the proof of it."""

LIMITS = ("--fuse", "4s", "--heartbeat-timeout", "3s", "--on-controller-loss", "end")
JOB = f"mkdir -p out; echo half > out/half; truncate -s {BIG_BYTES} out/big; echo started; "
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"


def start_until(box: Box, step: str, *options: str, terminal: bool = False) -> Command:
    """A run that has come into the midst of a step."""
    if step == "upload":
        with (box.work / "big").open("wb") as file:
            file.truncate(BIG_BYTES)
    sleeps = "" if step in {"collect", "release"} else f"exec sleep 600.{box.nonce}"
    artifact = "out/**" if step == "collect" else "out/half"
    command = box.job(*options, "--artifact", artifact, "--", "sh", "-c", JOB + sleeps, terminal=terminal)
    command.until_step(step)
    if step == "place":
        command.until(lambda: box.machines.exists() and any(box.machines.iterdir()), "a folder")
    elif step == "upload":
        command.until(lambda: size_of(box.home() / "work") > 0, "the first bytes there")
    elif step == "run":
        command.until_log(b"started")
    elif step == "collect":
        command.until(lambda: size_of(box.work / "gpu-runner-results") > 1 << 20, "the first bytes here")
    return command


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks
        except FileNotFoundError:
            continue
    return total * 512


def results(box: Box) -> Path:
    return box.work / "gpu-runner-results" / "gr-test" / "out"


def in_time(what: str, seconds: float) -> bool:
    sys.stdout.write(f"{what}: the machine was dead after {seconds:.2f} s (promised: asked for within {PROMISE_S} s)\n")
    return seconds < PROMISE_S + NOISE_S


@pytest.mark.parametrize("step", STEPS)
def test_sigterm_releases_at_once(box: Box, step: str) -> None:
    command = start_until(box, step)
    assert in_time(f"SIGTERM in {step}", box.seconds_until_dead(command.signal(signal.SIGTERM)))
    done = command.wait()
    assert done.code == (0 if step == "release" else 143), done  # by then all is done and home
    box.assert_nothing_left()


@pytest.mark.parametrize("step", STEPS)
def test_sigkill_leaves_it_to_the_guard_and_cleanup_finds_the_rest(box: Box, step: str) -> None:
    command = start_until(box, step, *LIMITS)
    command.signal(signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    assert eventually(lambda: not jobs(box) and not keys(box), 4 + 3 + 3 + NOISE_S), box.on_host()

    def cleaned() -> bool:
        done = box.run("cleanup", env=box.from_nowhere())
        assert done.code == 0, done
        return not box.on_host()

    assert eventually(cleaned, 20), box.on_host()
    assert box.run("list", env=box.from_nowhere()).stdout == b"no machines, nothing left over\n"


def jobs(box: Box) -> list[int]:
    """Processes of the machine; one that only keeps the note of a machine that ended is none."""
    ended = [path for path in box.machines.glob("gr-*/state.json") if '"terminated"' in path.read_text()]
    return [] if ended else box.processes()


def keys(box: Box) -> list[Path]:
    return [path for name in ("host_key", "authorized_keys", "home") for path in box.machines.glob(f"gr-*/{name}")]


@pytest.mark.parametrize("step", STEPS)
def test_one_ctrl_c_brings_artifacts_home_and_releases(box: Box, step: str) -> None:
    command = start_until(box, step, terminal=True)
    command.ctrl_c()
    done = command.wait()
    finished = step in {"collect", "release"}  # the job had ended by itself, and all came home
    assert done.code == (0 if finished else 130), done
    assert ("press Ctrl-C again" in done.stderr) or step == "release"
    assert (results(box) / "half").exists() == (step in {"run", "collect", "release"})
    if step == "collect":
        assert (results(box) / "big").stat().st_size == BIG_BYTES
    box.assert_nothing_left()


@pytest.mark.parametrize("step", ["run", "collect"])
def test_the_second_ctrl_c_releases_at_once(box: Box, step: str) -> None:
    if step == "run":
        command = box.job("--artifact", "out/*", "--", "sh", "-c", f"{JOB} {STUBBORN}", terminal=True)
        command.until_log(b"started")
    else:
        command = start_until(box, step, terminal=True)
    command.ctrl_c()
    command.until(lambda: "press Ctrl-C again" in command.stderr, "the hint")
    assert in_time(f"two Ctrl-C in {step}", box.seconds_until_dead(command.ctrl_c()))
    done = command.wait()
    assert done.code == 130, done
    assert not (results(box) / "big").exists()
    box.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_ci_any_signal_goes_straight_to_the_release(box: Box, number: int) -> None:
    command = box.job("--artifact", "out/*", "--", "sh", "-c", f"{JOB} {STUBBORN}", env={"CI": "true"}, terminal=True)
    command.until_log(b"started")
    assert in_time(f"signal {number} in CI", box.seconds_until_dead(command.signal(number)))
    done = command.wait()
    assert done.code == 128 + number, done
    assert "press Ctrl-C again" not in done.stderr
    assert not (results(box) / "big").exists()
    box.assert_nothing_left()


def test_a_terminal_that_goes_away(box: Box) -> None:
    command = start_until(box, "run", terminal=True)
    command.hang_up()
    done = command.wait()
    assert done.code == 143, done
    box.assert_nothing_left()


def test_sighup_is_ignored_under_nohup(box: Box) -> None:
    script = 'trap "" HUP; exec "$@"'
    command = box.start(
        "run", "--", "sh", "-c", "echo started; sleep 1", program=("sh", "-c", script, "sh", *box.program)
    )
    command.until_log(b"started")
    command.signal(signal.SIGHUP)
    assert command.wait().code == 0


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_during_attach(box: Box, presses: int) -> None:
    job = JOB + (STUBBORN if presses == 2 else f"exec sleep 600.{box.nonce}")
    assert box.job("--detach", "--artifact", "out/half", "--", "sh", "-c", job).wait().code == 0
    command = box.start("attach", "gr-test", terminal=True)
    command.until_log(b"started")
    command.ctrl_c()
    command.until(lambda: "press Ctrl-C again" in command.stderr, "the hint")
    if presses == 2:
        assert in_time("two Ctrl-C in attach", box.seconds_until_dead(command.ctrl_c()))
    done = command.wait()
    assert done.code == 130, done
    assert (results(box) / "half").exists() == (presses == 1)
    box.assert_nothing_left()


def test_sigterm_to_attach_leaves_nothing(box: Box) -> None:
    assert box.job("--detach", "--", "sh", "-c", "echo started; sleep 600").wait().code == 0
    command = box.start("attach", "gr-test")
    command.until_log(b"started")
    command.signal(signal.SIGTERM)
    done = command.wait()
    assert done.code == 143, done
    assert re.search(r"outcome +cancelled", done.stderr)
    box.assert_nothing_left()
