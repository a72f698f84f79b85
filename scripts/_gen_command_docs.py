"""Writes docs/commands.md from the command line itself, or with --check tells whether it is current."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from provisioner.cli import cli
from provisioner.settings import Setting, settings_for

READ_ELSEWHERE_TOO = frozenset({"run"})
"""Commands whose settings also come from variables and the file."""

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
INTRODUCTION = """\
# Commands

Made from the program by `scripts/gen-command-docs`; do not edit.

Every setting of `run` can also come from an environment variable, named in its table, and from `gpu-runner.toml`, under
the option's name without its dashes. Flags win over variables, variables over the file. Durations read `90s`, `10m`,
`2h`, `1d`. Exit codes stand in [concepts](concepts.md#exit-codes).
"""


def main() -> int:
    """Write the page, or compare it."""
    text = render(cli)
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/commands.md is not current; run scripts/gen-command-docs", file=sys.stderr)
        return 1
    return 0


def render(group: click.Group) -> str:
    """The page.

    Args:
        group: The root of the command line.

    Returns:
        Markdown.
    """
    root = click.Context(group, info_name="gpu-runner", **group.context_settings)
    commands = {name: group.get_command(root, name) for name in group.list_commands(root)}
    found = {name: command for name, command in commands.items() if command is not None}
    contents = [
        "| command | does |",
        "| --- | --- |",
        *(
            f"| [{name}](#gpu-runner-{name}) | {_cell(command.get_short_help_str(200))} |"
            for name, command in found.items()
        ),
        "",
    ]
    parts = [INTRODUCTION, "\n".join(contents), *_command(group, root, {}, "gpu-runner")]
    for name, command in found.items():
        context = click.Context(command, info_name=name, parent=root)
        settings = settings_for(name) if name in READ_ELSEWHERE_TOO else {}
        parts += _command(command, context, settings, f"gpu-runner {name}")
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _command(command: click.Command, context: click.Context, settings: dict[str, Setting], title: str) -> Iterator[str]:
    yield f"## {title}"
    yield _paragraphs(command.help or "")
    yield f"```text\n{title} {' '.join(command.collect_usage_pieces(context))}\n```"
    rows = [_row(option, context, settings) for option in command.get_params(context)]
    with_variables = any(variable for *_, variable in rows)
    if rows:
        head = ["option", "meaning", *(["variable"] if with_variables else [])]
        lines = [_line(head), _line(["---"] * len(head))]
        lines += [_line(row[: len(head)]) for row in rows if row[0]]
        yield "\n".join(lines)
    yield from _epilog(command.epilog or "")


def _row(parameter: click.Parameter, context: click.Context, settings: dict[str, Setting]) -> list[str]:
    record = parameter.get_help_record(context)
    if record is None or not record[1]:  # an argument without a text of its own stands in the usage line
        return ["", "", ""]
    names, meaning = record
    setting = settings.get(max(parameter.opts, key=len).lstrip("-"))
    return [f"`{_cell(names)}`", _cell(meaning), f"`{setting.variable}`" if setting else ""]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def _paragraphs(text: str) -> str:
    return inspect.cleandoc(text).replace("\b\n", "").replace("\f", "")


def _epilog(epilog: str) -> Iterator[str]:
    """Examples become blocks of their own; any other text stays text."""
    for part in re.split(r"\n\s*\n", epilog.replace("\b", "").strip()):
        lines = part.strip().splitlines()
        if lines and lines[0].strip().rstrip(":").lower() in {"example", "examples"}:
            yield "```text\n" + inspect.cleandoc("\n".join(["", *lines[1:]])) + "\n```"
        elif lines:
            yield "\n".join(line.strip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
