"""What a run tells on stderr and stdout: plain, folded in CI, and never in the way of the work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from provisioner.cli.reporter import Reporter
from tests.fakes import FakeClock

Fds = pytest.CaptureFixture[str]


def told(capfd: Fds) -> tuple[str, list[str]]:
    out, err = capfd.readouterr()
    return out, err.splitlines()


def reporter(environ: dict[str, str], clock: FakeClock | None = None, log_fd: int = 1) -> Reporter:
    return Reporter(clock or FakeClock(), environ, log_fd=log_fd)


def test_plain_lines_with_the_time(capfd: Fds) -> None:
    clock = FakeClock()
    tell = reporter({}, clock)
    tell.step("place", "gr-one")
    clock.advance(61.25)
    tell.note("no stock here")
    tell.warning("look at this")
    tell.progress(5, 10)
    tell.finish()
    _, lines = told(capfd)
    assert lines == [
        "[   0.0 s] place    gr-one",
        "[  61.2 s]          no stock here",
        "[  61.2 s] warning: look at this",
    ]


def test_groups_of_github_with_the_jobs_log_unfolded(capfd: Fds) -> None:
    tell = reporter({"GITHUB_ACTIONS": "true"})
    tell.step("place", "gr-one")
    tell.step("run", "python train.py")
    tell.log(b"epoch 1\n")
    tell.step("collect")
    tell.warning("nothing matched")
    tell.finish()
    tell.finish()
    out, lines = told(capfd)
    assert out == "epoch 1\n"
    assert [line.split(" ")[0] for line in lines] == [
        "::group::place",
        "::endgroup::",
        "::group::run",
        "::endgroup::",
        "::group::collect",
        "::warning::nothing",
        "::endgroup::",
    ]


def test_a_warning_to_github_is_one_command_whatever_stands_in_it(capfd: Fds) -> None:
    reporter({"GITHUB_ACTIONS": "true"}).warning("50%\r\n::add-mask::a")
    assert told(capfd)[1] == ["::warning::50%25%0D%0A::add-mask::a"]


def test_sections_of_gitlab_close_with_the_name_they_began_with(capfd: Fds) -> None:
    tell = reporter({"GITLAB_CI": "true"})
    for step in ("place", "run", "collect", "release"):
        tell.step(step, "x")
    tell.finish()
    _, err = capfd.readouterr()
    marks = re.findall(r"section_(start|end):\d+:([a-z]+)\r", err)
    assert marks == [(edge, step) for step in ("place", "run", "collect", "release") for edge in ("start", "end")]


@pytest.mark.parametrize("environ", [{"CI": "true"}, {"JENKINS_URL": "x"}])
def test_elsewhere_in_ci_lines_stay_plain(capfd: Fds, environ: dict[str, str]) -> None:
    tell = reporter(environ)
    tell.step("place", "gr-one")
    tell.finish()
    assert told(capfd)[1] == ["[   0.0 s] place    gr-one"]


def test_a_line_of_ours_never_lands_in_a_line_of_the_job(capfd: Fds) -> None:
    tell = reporter({}, log_fd=2)
    tell.log(b"50 %")
    tell.step("collect")
    tell.log(b"bytes \xff\n")
    tell.note("next")
    _, err = capfd.readouterr()
    assert "50 %\n[" in err
    assert "\n\n" not in err


def test_bytes_of_the_job_pass_as_they_are(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    reporter({}).log(bytes(range(256)))
    assert capfdbinary.readouterr().out == bytes(range(256))


@pytest.fixture
def deaf() -> Iterator[int]:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_reader_that_has_gone_is_told_of_once(capfd: Fds, deaf: int) -> None:
    tell = reporter({}, log_fd=deaf)
    for _ in range(3):
        tell.log(b"line\n")
    assert [line for line in told(capfd)[1] if "cannot be shown" in line] != []
    tell.step("collect")
    assert len(told(capfd)[1]) == 1
