"""The set-up behind scripts/try, scripts/test and scripts/lint: from nothing, again, at once, broken off, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tools

ROOT = Path(__file__).parents[2]
UNAVAILABLE = 69

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "toy"
version = "1"
[project.optional-dependencies]
example = []
needy = ["gpu-runner-has-no-such-dependency"]
"""

# A build backend of the standard library alone, so that the set-up is tested without any network.
BACKEND = """
import os, time, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if os.path.exists("slow"):
        time.sleep(60)
    name = "toy-1-py3-none-any.whl"
    with open("builds", "a") as log:
        log.write("built\\n")
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("toy.pth", os.getcwd())
        wheel.writestr("toy-1.dist-info/METADATA",
            "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\nProvides-Extra: example\\nProvides-Extra: needy\\n"
            "Requires-Dist: gpu-runner-has-no-such-dependency; extra == 'needy'\\n")
        wheel.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("toy-1.dist-info/RECORD", "")
    return name
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with our set-up, and a program that only says which Python it has."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for name in ("_env.sh", "_setup.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    program = root / "scripts" / "say"
    program.write_text(
        '#!/bin/sh\nset -eu\n. "$(dirname -- "$0")/_env.sh"\nset_up "${1-example}"\n'
        "exec python -c 'import sys; print(sys.prefix)'\n"
    )
    program.chmod(0o755)
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    return root


def environment(**changes: str) -> dict[str, str]:
    base = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    return base | {"PYTHON": sys.executable} | changes


def say(checkout: Path, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / "say", *args],
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd="/",
    )


def builds(checkout: Path) -> int:
    return len((checkout / "builds").read_text().splitlines())


def test_first_it_sets_up_and_then_it_is_there_at_once(checkout: Path) -> None:
    first = say(checkout)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(checkout / ".venv")
    assert "making .venv" in first.stderr
    assert "ready after" in first.stderr
    took_s = []
    for _ in range(3):
        started_s = time.monotonic()
        again = say(checkout)
        took_s.append(time.monotonic() - started_s)
        assert (again.returncode, again.stderr) == (0, "")
    assert min(took_s) < 0.3
    assert builds(checkout) == 1

    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    changed = say(checkout)
    assert "making .venv" not in changed.stderr
    assert builds(checkout) == 2


def test_two_at_once_make_one_environment(checkout: Path) -> None:
    both = [
        subprocess.Popen(
            [checkout / "scripts" / "say"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert {out.strip() for out, _ in ends} == {str(checkout / ".venv")}
    assert sum("waiting for another set-up" in err for _, err in ends) == 1
    assert builds(checkout) == 1


def test_a_set_up_that_was_killed_is_done_again(checkout: Path) -> None:
    (checkout / "slow").touch()
    process = subprocess.Popen(
        [checkout / "scripts" / "say"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Preparing editable" in line or "Building editable" in line or "done once" in line:
            break
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (checkout / "slow").unlink()
    again = say(checkout)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str(checkout / ".venv")


def test_a_broken_environment_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    done = say(checkout)
    assert done.returncode == 0, done.stderr


def test_an_old_python_is_refused_with_words(checkout: Path) -> None:
    done = say(checkout, PYTHON=tools.find_python("3.8"))
    assert done.returncode == UNAVAILABLE
    assert "Python 3.10 or newer is not installed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_told_what_to_install(checkout: Path) -> None:
    crippled = checkout / "python"
    crippled.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} "$@"
exec {sys.executable} -c '
import runpy, sys
sys.modules["ensurepip"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""
    )
    crippled.chmod(0o755)
    done = say(checkout, PYTHON=str(crippled))
    assert done.returncode == UNAVAILABLE
    assert "has no venv module" in done.stderr
    assert "python3-venv" in done.stderr


def test_without_a_network_it_says_so(checkout: Path) -> None:
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": ""}
    done = say(checkout, "needy", **nowhere)
    assert done.returncode == UNAVAILABLE
    assert "is there a network here?" in done.stderr
    assert not (checkout / ".venv" / ".ready-needy").exists()


@pytest.mark.slow
def test_try_runs_the_example_and_leaves_no_machine(tmp_path: Path) -> None:
    if not any((ROOT / ".venv").glob(".ready-dev,example")):
        tools.missing("what scripts/test sets up")
    env = environment(GPU_RUNNER_LOCAL_DIR=str(tmp_path / "machines"), GPU_RUNNER_STATE_DIR=str(tmp_path / "state"))
    done = subprocess.run(
        [ROOT / "scripts" / "try", "--output", tmp_path / "results", "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["outcome"] == "ok"
    assert told["release"]["confirmed"] is True
    assert {path.name for path in (tmp_path / "results").iterdir()} >= {
        "metrics.json",
        "confusion_matrix.png",
        "model.joblib",
    }
    assert not [path for path in (tmp_path / "machines").iterdir() if path.name.startswith("gr-")]
