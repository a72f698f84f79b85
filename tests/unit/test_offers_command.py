from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from provisioner.cli import cli
from provisioner.cli.table import lines
from provisioner.errors import ConfigError

CLOUDS = ["--provider", "aws", "--provider", "azure", "--provider", "gcp"]


def offers(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["offers", *arguments])


def answer(*arguments: str) -> Any:
    result = offers(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_cheapest_comes_first_and_the_age_of_prices_is_told() -> None:
    result = offers("--gpu", "A10G", *CLOUDS, "--limit", "2")
    head, *rows = result.stdout.splitlines()
    assert head.split() == [
        "PROVIDER", "REGION", "TYPE", "GPU", "GPU", "GIB", "VCPUS", "RAM", "GIB", "MARKET", "USD/H", "INTERRUPTED",
    ]  # fmt: skip
    assert [row.split()[2] for row in rows] == ["g5.xlarge", "g5.2xlarge"]
    assert "0.4125" in rows[0]
    assert "188 more" in result.stderr
    assert "aws spot 2025-07-01 (" in result.stderr
    assert "days old" in result.stderr


def test_all_rows_when_nobody_looks() -> None:
    result = offers(*CLOUDS)
    assert len(result.stdout.splitlines()) == 3536 + 1
    assert "more" not in result.stderr.splitlines()[0]


def test_an_unknown_price_is_a_question_mark_and_last() -> None:
    rows = offers("--gpu", "A10G", "--provider", "aws").stdout.splitlines()[1:]
    assert " ? " in rows[-1] + " "
    assert "0.0000" not in "".join(rows)


def test_one_json_document_with_all() -> None:
    document = answer("--gpu", "A10G", *CLOUDS)
    assert document["count"] == len(document["offers"]) == 190
    assert document["explanation"] is None
    assert document["unread"] == []
    first, last = document["offers"][0], document["offers"][-1]
    assert first["price_usd_hour"] == 0.4125
    assert first["priced_on"] == "2025-07-01"
    assert last["price_usd_hour"] is None
    assert {price["provider"] for price in document["prices"]} == {"aws", "azure", "gcp"}
    assert len(answer("--gpu", "A10G", "--limit", "3")["offers"]) == 3


def test_an_empty_answer_is_explained() -> None:
    result = offers("--gpu", "A10G", "--max-price", "0.3", *CLOUDS)
    assert result.exit_code == 0
    assert "--max-price 0.3" in result.stdout
    assert "nearest: --max-price 0.4125" in result.stdout
    document = answer("--gpu", "A10G", "--max-price", "0.3", *CLOUDS)
    assert document["offers"] == []
    assert document["explanation"]["nearest"]["best"]["instance_type"] == "g5.xlarge"
    assert {out["wish"] for out in document["explanation"]["ruled_out"]} >= {"--gpu A10G", "--max-price 0.3"}


def test_each_wish_of_the_command_line_arrives() -> None:
    document = answer(
        "--gpu", "L4:1", "--gpu-memory", "24", "--region", "us-*", "--market", "spot", "--max-price", "1",
        "--vcpus", "8", "--instance-type", "g2-*", "--provider", "gcp",
    )  # fmt: skip
    assert document["offers"]
    for offer in document["offers"]:
        assert (offer["provider"], offer["gpu"], offer["gpu_count"], offer["market"]) == ("gcp", "L4", 1, "spot")
        assert offer["region"].startswith("us-")
        assert offer["price_usd_hour"] <= 1
        assert offer["vcpus"] >= 8


def test_this_machine_is_an_offer_too() -> None:
    assert {offer["provider"] for offer in answer("--provider", "local")["offers"]} == {"local"}
    assert any(offer["provider"] == "local" for offer in answer()["offers"])
    assert all(offer["gpu"] is None for offer in answer("--provider", "local", "--gpu", "none")["offers"])
    assert all(offer["provider"] == "aws" for offer in answer("--provider", "aws")["offers"])


def test_mistakes_are_told_at_once() -> None:
    error = offers("--gpu", "A10G:0", "--max-price", "x", "--provider", "awss").exception
    assert isinstance(error, ConfigError)
    assert len(error.details.splitlines()) == 3
    assert "did you mean aws?" in error.details
    unknown = offers("--gpu", "A10O").exception
    assert isinstance(unknown, ConfigError)
    assert "did you mean A10" in unknown.resolution


def test_the_environment_and_the_settings_file_do_not_narrow_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPU_RUNNER_GPU", "T4")
    (tmp_path / "gpu-runner.toml").write_text('gpu = "T4"', encoding="utf-8")
    assert {offer["gpu"] for offer in answer(*CLOUDS)["offers"]} > {"T4", "L4"}


def test_no_heavy_library_is_loaded() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from provisioner.cli import cli; "
        "result = CliRunner().invoke(cli, ['offers', '--json']); assert result.exit_code == 0; "
        "print([name for name in ('paramiko', 'rich', 'cryptography', 'tenacity', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def on_a_terminal(environ: dict[str, str]) -> str:
    """What a person would see, stdout and stderr together."""
    controller, terminal = pty.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(controller, 4096):
                seen.extend(chunk)
        except OSError:  # how Linux says that the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    script = (
        "import sys; from provisioner.cli import main; sys.argv = ['gpu-runner', 'offers', '--provider', 'aws']; main()"
    )
    try:
        subprocess.run(
            [sys.executable, "-c", script], stdin=terminal, stdout=terminal, stderr=terminal, env=environ, check=True
        )
    finally:
        os.close(terminal)
        reader.join(timeout=10)
        os.close(controller)
    return seen.decode()


def test_a_terminal_shows_twenty_rows_in_colour_unless_told_not_to() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    coloured = on_a_terminal(environ)
    assert "\x1b[1m" in coloured
    assert "1,696 more" in coloured
    plain = on_a_terminal(environ | {"NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert len([line for line in plain.splitlines() if line.startswith("aws ")]) == 20


def test_a_table_is_aligned_and_keeps_control_characters_to_itself() -> None:
    assert lines(("A", "NUMBER"), [("long name", "1"), ("x\x1b[31m", "22")], right=("NUMBER",)) == [
        "A          NUMBER",
        "long name       1",
        "x?[31m         22",
    ]
    assert lines(("A", "B"), []) == ["A  B"]
