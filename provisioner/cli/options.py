"""Flags from the table of settings. They take any text: ``config`` reads it, and tells every mistake at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from provisioner.settings import Setting, Shape, settings_for

F = TypeVar("F", bound=Callable[..., object])


def options_for(command: str) -> Callable[[F], F]:
    """Give a click command the flags of its settings.

    A flag that is not given arrives as None, or as an empty tuple where it may repeat: hand all of them to
    ``config.load_run`` and the like.

    Args:
        command: ``run``, ``up`` or ``offers``.

    Returns:
        A decorator.
    """

    def decorate(function: F) -> F:
        for setting in reversed(settings_for(command).values()):
            function = _option(setting)(function)
        return function

    return decorate


def _option(setting: Setting) -> Callable[[F], F]:
    name = setting.name
    if setting.shape is Shape.FLAG:
        return click.option(f"--{name}/--no-{name}", default=None, help=_help(setting))
    return click.option(
        f"--{name}",
        name.replace("-", "_"),
        multiple=setting.shape is not Shape.ONE,
        metavar="|".join(setting.choices) if setting.choices and setting.shape is Shape.ONE else setting.metavar,
        help=_help(setting),
        shell_complete=_completion(setting.choices) if setting.choices else None,
    )


def _help(setting: Setting) -> str:
    default = "no" if setting.shape is Shape.FLAG else setting.default_text
    return f"{setting.help} Default: {default}." if default else setting.help


def _completion(choices: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete
