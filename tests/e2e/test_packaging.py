"""The wheel: what it holds, and that it works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import provisioner

ROOT = Path(__file__).parents[2]


def build(target: str, folder: Path) -> Path:
    """Build one distribution of this checkout."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and our dependencies but not our checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
    )
    # A path from a .pth file is searched, but the .pth files in it (that of our editable install) are not read.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *args: str, cwd: Path) -> str:
    hidden = {"PYTHONPATH", "VIRTUAL_ENV"}
    env = {key: value for key, value in os.environ.items() if key not in hidden} | {
        "GPU_RUNNER_LOCAL_DIR": str(cwd / "machines"),
        "GPU_RUNNER_STATE_DIR": str(cwd / "state"),
    }
    done = subprocess.run([python, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_what_the_program_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {f"provisioner/_templates/{path.name}" for path in (ROOT / "templates").iterdir() if path.is_file()}
    assert {"provisioner/_templates/guard.py", "provisioner/_templates/supervisor.py"} <= shipped <= names
    package = ROOT / "provisioner"
    sources = {f"provisioner/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()}
    assert {name for name in sources - names if "__pycache__" not in name} == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"provisioner", f"gpu_runner-{provisioner.__version__}.dist-info"}


def test_the_source_distribution_holds_what_builds_and_tests_it(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    wanted = {"pyproject.toml", "LICENSE", "README.md", "templates/guard.py", "scripts/test", "docs/quickstart.md"}
    assert wanted <= names
    assert "provisioner/__init__.py" in names
    assert "tests/e2e/test_packaging.py" in names


def test_the_installed_program_finds_its_files(installed: Path, tmp_path: Path) -> None:
    told = run(
        installed,
        "-c",
        "import provisioner; from provisioner.resources import template_path\n"
        "print(provisioner.__file__); print(template_path('guard.py')); print(template_path('supervisor.py'))",
        cwd=tmp_path,
    )
    for line in told.splitlines():
        assert Path(line).is_relative_to(installed.parent.parent)
    assert run(installed, "-m", "provisioner", "--version", cwd=tmp_path) == f"gpu-runner {provisioner.__version__}\n"
    assert json.loads(run(installed, "-m", "provisioner", "offers", "--gpu", "L4", "--json", cwd=tmp_path))


@pytest.mark.slow
def test_the_installed_program_runs_a_job(installed: Path, tmp_path: Path) -> None:
    program = installed.with_name("gpu-runner")
    (tmp_path / "work").mkdir()
    told = run(installed, str(program), "run", "--workdir", "work", "--json", "--", "sh", "-c", "exit 0", cwd=tmp_path)
    assert json.loads(told)["release"]["confirmed"] is True


def test_the_version_is_the_same_where_it_is_said_twice() -> None:
    assert f'version = "{provisioner.__version__}"' in (ROOT / "pyproject.toml").read_text()
