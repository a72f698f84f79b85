"""Files of the house that no program of ours reads: CI, hooks, licence."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tools

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def tool(name: str) -> str:
    """A program of the dev extra, beside the running Python."""
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    return path or tools.require(name)


def passes(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_what_github_expects(workflow: Path) -> None:
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", workflow)
    passes(tool("actionlint"), "-shellcheck", tool("shellcheck"), workflow)


def test_ci_tries_every_python_that_is_supported() -> None:
    versions = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert versions == named
    assert versions[0] == "3.10"


def test_the_hooks_are_what_pre_commit_expects() -> None:
    passes(tool("pre-commit"), "validate-config", ".pre-commit-config.yaml")
    hooks = read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    for hook in hooks:
        program = hook["entry"].split()[0]
        path = ROOT / program
        assert path.exists() or program.startswith(".venv/"), program
    assert {"ruff-check", "ruff-format", "mypy", "shellcheck"} <= {hook["id"] for hook in hooks}


def test_every_shell_program_says_that_it_stops_at_errors() -> None:
    programs = [path for path in (*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run") if path.is_file()]
    shell = [path for path in programs if path.read_text(encoding="utf-8").startswith("#!/bin/sh")]
    assert {"try", "test", "lint", "run"} <= {path.name for path in shell}
    for path in shell:
        assert "\nset -eu\n" in path.read_text(encoding="utf-8"), path.name
        assert path.stat().st_mode & 0o111, f"{path.name} cannot be executed"


def test_the_licence_is_there_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
