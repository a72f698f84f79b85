"""Colour, only where a person sees it: on a terminal, and unless NO_COLOR is set (no-color.org)."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click


def wanted(stream: TextIO | None = None) -> bool:
    """Whether a stream gets colour.

    Args:
        stream: Where it would go; stderr if not given.

    Returns:
        True on a terminal without NO_COLOR.
    """
    return (stream or sys.stderr).isatty() and not os.environ.get("NO_COLOR")


def good(text: str) -> str:
    """Something that went well."""
    return click.style(text, fg="green") if wanted() else text


def bad(text: str) -> str:
    """Something that went wrong."""
    return click.style(text, fg="red", bold=True) if wanted() else text


def warn(text: str) -> str:
    """Something to look at."""
    return click.style(text, fg="yellow") if wanted() else text


def dim(text: str) -> str:
    """Something of less weight."""
    return click.style(text, dim=True) if wanted() else text


def bold(text: str) -> str:
    """Something of more weight."""
    return click.style(text, bold=True) if wanted() else text
