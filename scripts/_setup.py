"""Makes .venv ready: the slow half of scripts/_env.sh. Standard library only, Python 3.10 or newer."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
UNAVAILABLE = 69
NEWS_EVERY_S = 5.0


def main() -> int:
    """Set up, unless another process has just done it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", required=True)
    parser.add_argument("--python-version", required=True, help="major.minor that .venv is to have")
    parser.add_argument("--key", required=True, help="what the stamp must say")
    args = parser.parse_args()
    stamp = VENV / f".ready-{args.extras}"
    with _only_one():
        if _read(stamp) == args.key and _healthy(args.python_version):
            return 0
        if not _healthy(args.python_version):
            _create(args.python_version)
        _install(args.extras)
        part = stamp.with_suffix(".part")
        part.write_text(args.key + "\n", encoding="utf-8")
        part.replace(stamp)
    return 0


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Two set-ups at once: the second waits. The kernel drops the lock with the process, however that ends."""
    with (ROOT / "pyproject.toml").open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another set-up of this checkout ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _healthy(version: str) -> bool:
    """Whether .venv has a working Python of that version, and pip."""
    probe = 'import sys, pip; print("%d.%d" % sys.version_info[:2])'
    try:
        answer = subprocess.run(
            [VENV / "bin" / "python", "-c", probe], capture_output=True, text=True, check=False, timeout=60
        )
    except OSError:
        return False
    return answer.stdout.strip() == version


def _create(version: str) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        _die(f"Python {version} has no venv module", "Install it, for instance: apt-get install python3-venv")
    _say(f"making .venv with Python {version} ...")
    try:
        venv.create(VENV, clear=True, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _die(f"cannot make .venv: {error}", f"Look at {VENV}, or remove it and try again")


def _install(extras: str) -> None:
    _say(f"installing gpu-runner with what it needs ({extras}); this is done once ...")
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", "--retries=2", "--editable", f".[{extras}]"]
    started_s = time.monotonic()
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        LOG.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as pip,
    ):
        while _runs_on(pip):
            _say(f"  {time.monotonic() - started_s:3.0f} s  {_last_line()}")
    if pip.returncode:
        _explain_failure()
    _say(f"ready after {time.monotonic() - started_s:.0f} s")


def _runs_on(pip: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        pip.wait(NEWS_EVERY_S)
    return pip.returncode is None


def _last_line() -> str:
    lines = _log_lines()
    return lines[-1].strip()[:100] if lines else ""


def _log_lines() -> list[str]:
    return LOG.read_text(encoding="utf-8", errors="replace").splitlines()


def _explain_failure() -> None:
    lines = _log_lines()
    hints = ["Run it again: what was downloaded already is kept."]
    if any("Retrying (" in line for line in lines):
        hints.insert(0, "The package index did not answer: is there a network here? Behind a proxy set HTTPS_PROXY.")
    _die("pip could not install the packages", *lines[-8:], f"All of it: {LOG}", *hints)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def _die(brief: str, *more: str) -> None:
    _say(brief)
    for line in more:
        print(f"  {line}", file=sys.stderr)
    sys.exit(UNAVAILABLE)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _say("interrupted; run it again to go on")
        sys.exit(130)
