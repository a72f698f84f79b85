"""How little is loaded before it is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from provisioner.cli import _COMMANDS, cli
from provisioner.settings import INFRASTRUCTURE_VARIABLES

PACKAGE = Path(__file__).parents[2] / "provisioner"

HEAVY = ("paramiko", "rich", "cryptography", "pynvml", "tenacity", "boto3", "botocore", "azure", "google", "asyncio")
LOOK = "import sys; from provisioner.cli import main\ntry:\n main()\nfinally:\n print(*sys.modules, file=sys.stderr)"


def loaded_by(*arguments: str) -> set[str]:
    """The top-level packages that a command loads."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.split(".")[0] for name in done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("completion", "bash")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "click" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_command_loads_no_sdk(name: str) -> None:
    assert loaded_by(name, "--help") & (set(HEAVY) - {"tenacity", "asyncio"}) == set()


def test_help_imports_no_command() -> None:
    code = LOOK.replace("print(*sys.modules", "print(*[m for m in sys.modules if m.startswith('provisioner.')]")
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) <= {"provisioner.cli", "provisioner.__version__"}


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").split("\n")[0] == _COMMANDS[name]


def test_the_table_has_every_command_in_one_order() -> None:
    shown = cli.list_commands(click.Context(cli))
    assert shown == [*_COMMANDS]
    assert len(set(shown)) == len(shown)


def test_every_variable_of_ours_that_is_read_is_known_to_the_settings() -> None:
    names = {
        name for path in PACKAGE.rglob("*.py") for name in re.findall(r"\bGPU_RUNNER_[A-Z_]*[A-Z]", path.read_text())
    }
    given_to_others = {"GPU_RUNNER_MACHINE", "GPU_RUNNER_LEASE", "GPU_RUNNER_JOB", "GPU_RUNNER_TIMEOUT"}
    assert names - given_to_others <= INFRASTRUCTURE_VARIABLES


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "provisioner", "claenup"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 64
    assert "Did you mean cleanup?" in done.stderr
