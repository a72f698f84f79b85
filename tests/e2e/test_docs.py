"""The docs tell the truth: their commands run, their links lead somewhere, the command reference is current.

A fenced block marked ``sh`` is run. ``sh norun: REASON`` is only checked for options that exist; ``sh exit=N`` is to
end with that code. The blocks of a page run in order, as one person would type them: folder and variables carry over.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from provisioner.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PATIENCE_S = 180
FENCE = re.compile(r"^```(\S*)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


@dataclass(frozen=True)
class Block:
    """One block of commands.

    Attributes:
        page: Where it stands.
        line: The line of its first command.
        text: The commands.
        norun: Why it is not run; empty if it is.
        exit_code: What it is to end with.
    """

    page: Path
    line: int
    text: str
    norun: str
    exit_code: int


def blocks(page: Path) -> list[Block]:
    """The shell blocks of a page.

    Args:
        page: A Markdown file.

    Returns:
        In order.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        language, info, body = fence.groups()
        if language not in {"sh", "console", "bash", "shell"}:
            continue
        known = re.fullmatch(r"(?:norun: *(?P<why>.+)|exit=(?P<code>\d+))?", info.strip())
        assert known is not None, f"{page.name}: what is `{language} {info}`?"
        if language == "console":
            body = "".join(line[2:] for line in body.splitlines(keepends=True) if line.startswith("$ "))
        line = text.count("\n", 0, fence.start(3)) + 1
        found.append(Block(page, line, body, known["why"] or "", int(known["code"] or 0)))
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Reader:
    """Somebody who types what a page says, in a project of their own."""

    def __init__(self, folder: Path) -> None:
        self.machines = folder / "machines"
        self._notes = folder / "notes"
        self._project = folder / "project"
        for made in (self._notes, folder / "home"):
            made.mkdir()
        shutil.copytree(ROOT / "docs" / "examples", self._project / "docs" / "examples")
        subprocess.run(["git", "init", "-q", self._project], check=True)
        hidden = re.compile(r"CI|GITHUB_.*|GITLAB_.*|GPU_RUNNER_.*|PYTHONPATH|XDG_.*")
        self._env = {key: value for key, value in os.environ.items() if not hidden.fullmatch(key)} | {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "HOME": str(folder / "home"),
            "GPU_RUNNER_LOCAL_DIR": str(self.machines),
            "GPU_RUNNER_STATE_DIR": str(folder / "state"),
        }
        (self._notes / "before").write_text(f"cd {shlex.quote(str(self._project))}\n")

    def types(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a block in the folder and with the variables that the last one left."""
        script = (
            f". {shlex.quote(str(self._notes / 'before'))}\n"
            f'trap \'{{ export -p; printf "cd %s\\n" "$(pwd)"; }} > {shlex.quote(str(self._notes / "after"))}\' EXIT\n'
            f"set -eu\n{text}"
        )
        process = subprocess.Popen(
            ["sh", "-c", script],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=60)
            stderr += f"\nnot done after {PATIENCE_S} s"
        (self._notes / "after").replace(self._notes / "before")
        return subprocess.CompletedProcess(text, process.returncode, stdout, stderr)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    person = Reader(tmp_path)
    yield person
    left = leases_left(person)
    if left:
        person.types(f"gpu-runner down --now {' '.join(left)}")


def leases_left(reader: Reader) -> list[str]:
    if not reader.machines.is_dir():
        return []
    return [path.name.rsplit("-", 1)[0] for path in reader.machines.iterdir() if path.name.startswith("gr-")]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(not b.norun for b in blocks(page))], ids=name_of)
def test_the_commands_of_a_page_work_in_order_and_leave_nothing(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        if block.norun:
            continue
        done = reader.types(block.text)
        told = f"{name_of(page)}:{block.line}\n{block.text}\nstdout: {done.stdout}\nstderr: {done.stderr}"
        assert done.returncode == block.exit_code, told
    assert leases_left(reader) == []


def commands(text: str) -> Iterator[list[str]]:
    """The gpu-runner command lines in a text, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"\s*(\$ )?gpu-runner ", line):
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            yield words[1 : words.index(">") if ">" in words else None]


def parses(words: list[str]) -> None:
    """Check a command line against the options that exist; nothing is run."""
    root = click.Context(cli, info_name="gpu-runner")
    name, command, args = cli.resolve_command(root, words)
    assert command is not None
    command.make_context(name, args, parent=root)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_has_options_that_exist(page: Path) -> None:
    fences = [body for _, _, body in FENCE.findall(page.read_text(encoding="utf-8"))]
    for words in (words for body in fences for words in commands(body)):
        if words != ["[OPTIONS]", "COMMAND", "[ARGS]..."] and "[OPTIONS]" not in words:
            parses(words)


def test_the_examples_in_help_texts_have_options_that_exist() -> None:
    root = click.Context(cli, info_name="gpu-runner")
    for command in (cli, *(cli.get_command(root, name) for name in cli.list_commands(root))):
        assert command is not None
        examples = list(commands((command.epilog or "").replace("\b", "")))
        assert examples or command.name == "completion", f"{command.name} has no example"
        for words in examples:
            parses(words)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_the_command_reference_is_current() -> None:
    program = ROOT / "scripts" / "_gen_command_docs.py"
    done = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_extractor_knows_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "x\n```sh exit=3\nfalse\n```\n```console\n$ true\noutput\n```\n"
        "```sh norun: no cloud\nno\n```\n```text\nno\n```\n"
    )
    first, second, third = blocks(page)
    assert (first.text, first.exit_code, first.line) == ("false\n", 3, 3)
    assert second.text == "true\n"
    assert (third.norun, third.text) == ("no cloud", "no\n")
    page.write_text("```sh maybe\ntrue\n```\n")
    with pytest.raises(AssertionError, match="maybe"):
        blocks(page)
