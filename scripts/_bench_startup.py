"""How long a whole process takes: help, offers, a job that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from _bench_table import Figure, timed

_BIN = Path(sys.executable).parent
_GPU_RUNNER = str(_BIN / "gpu-runner")
_ROUNDS = 11


def startups() -> Iterator[Figure]:
    """Start-up against a process that only imports click, and what the commands add."""
    click = [sys.executable, "-c", "import click"]
    help_s, click_s = _medians([_GPU_RUNNER, "--help"], click)
    yield Figure("gpu-runner --help", help_s, help_s / click_s, 1.5, "import click", click_s)
    offers_s, help_s = _medians([_GPU_RUNNER, "offers"], [_GPU_RUNNER, "--help"])
    yield Figure("gpu-runner offers, above --help", offers_s, 1000 * (offers_s - help_s), 150, "--help", help_s, "ms")


def runs() -> Iterator[Figure]:
    """A whole ``run -- true`` on a local machine."""
    with tempfile.TemporaryDirectory(prefix="gr-bench-") as folder:
        environ = os.environ | {"GPU_RUNNER_STATE_DIR": f"{folder}/state", "GPU_RUNNER_LOCAL_DIR": f"{folder}/local"}
        work = Path(folder) / "work"
        work.mkdir()
        took_s = median(
            timed(lambda: _call([_GPU_RUNNER, "run", "--", "true"], cwd=work, environ=environ)) for _ in range(5)
        )
    yield Figure("run -- true, local machine", took_s, took_s, 2.0, unit="s")


def _medians(ours: Sequence[str], theirs: Sequence[str]) -> tuple[float, float]:
    """Medians of the two, measured in turn."""
    _call(ours)
    pairs = [(timed(lambda: _call(ours)), timed(lambda: _call(theirs))) for _ in range(_ROUNDS)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def _call(command: Sequence[str], *, cwd: Path | None = None, environ: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
