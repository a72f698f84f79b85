"""The example that ``scripts/try`` runs: right, repeatable, and its outputs are what a user would expect."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "digits"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def train(folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """Run the example in a folder of its own; its metrics and what it printed."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml.safe_load((folder / "params.yaml").read_text()) | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads((folder / "metrics.json").read_text()), done.stdout


@pytest.mark.slow
def test_it_learns_to_read_digits(tmp_path: Path) -> None:
    metrics, printed = train(tmp_path / "run")
    epochs = yaml.safe_load((EXAMPLE / "params.yaml").read_text())["epochs"]
    assert metrics["accuracy"] > 0.97
    assert len(metrics["history"]["loss"]) == len(metrics["history"]["test_accuracy"]) == epochs
    assert metrics["history"]["loss"][-1] == metrics["loss"] < metrics["history"]["loss"][0] / 10
    assert sum(line.startswith("epoch ") for line in printed.splitlines()) == epochs


def test_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    first, _ = train(tmp_path / "first", epochs=2, augment=False)
    second, _ = train(tmp_path / "second", epochs=2, augment=False)
    other, _ = train(tmp_path / "other", epochs=2, augment=False, seed=8)
    assert first == second
    assert first != other


def test_it_writes_a_picture_and_a_model_that_loads(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1, augment=False)
    picture = (tmp_path / "run" / "confusion_matrix.png").read_bytes()
    assert picture.startswith(PNG_MAGIC)
    assert len(picture) > 10_000
    model = joblib.load(tmp_path / "run" / "model.joblib")
    assert model.predict([[0.0] * 64]).shape == (1,)
