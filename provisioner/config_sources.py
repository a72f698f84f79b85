"""Reads settings from flags, environment and gpu-runner.toml; says nothing yet about which of them wins."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisioner.errors import ConfigError
from provisioner.settings import (
    ENVIRONMENT_PREFIX,
    INFRASTRUCTURE_VARIABLES,
    SETTINGS,
    CapRule,
    Setting,
    Shape,
    settings_for,
)

FILE_NAME = "gpu-runner.toml"
_LARGEST_INT = 2**63


@dataclass(frozen=True)
class Given:
    """What one source says of one setting, as text.

    Attributes:
        texts: The values as they were written.
        source: What to call the source: ``--timeout``, ``GPU_RUNNER_TIMEOUT`` or ``gpu-runner.toml:timeout``.
        folder: What a relative path in it is relative to.
    """

    texts: tuple[str, ...]
    source: str
    folder: Path


@dataclass(frozen=True)
class Cap:
    """One entry of ``[limits]``."""

    texts: tuple[str, ...]
    source: str


@dataclass
class Mistakes:
    """Collects everything that is wrong, so that it can be told at once."""

    lines: list[str] = field(default_factory=list)

    def add(self, source: str, message: str) -> None:
        """Note one mistake.

        Args:
            source: Where it stands.
            message: What is wrong and what is understood.
        """
        self.lines.append(f"{source}: {message}")

    def tell(self) -> None:
        """End here if there are any.

        Raises:
            ConfigError: Names all of them, one a line.
        """
        lines = list(dict.fromkeys(self.lines))
        if lines:
            brief = "a setting is wrong" if len(lines) == 1 else f"{len(lines)} settings are wrong"
            raise ConfigError(brief, details="\n".join(lines), resolution="--help explains every setting")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest valid name, as the end of a sentence.

    Args:
        name: What was written.
        known: What is understood.

    Returns:
        ``; did you mean X?``, or nothing when nothing is near.
    """
    import difflib

    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower()[:80], by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def from_flags(flags: Mapping[str, object], settings: Mapping[str, Setting], cwd: Path) -> dict[str, Given]:
    """Take the flags that were given.

    Args:
        flags: Parameter name to value, as click hands them over: None or an empty tuple for a flag that was not given.
        settings: The command's settings.
        cwd: The current folder.

    Returns:
        By setting.
    """
    found = {}
    for name, setting in settings.items():
        value = flags.get(name.replace("-", "_"))
        if value is None or value == ():
            continue
        texts = tuple(str(item) for item in value) if isinstance(value, (tuple, list)) else (str(value),)
        off = setting.shape is Shape.FLAG and not value
        found[name] = Given(texts, f"--no-{name}" if off else f"--{name}", cwd)
    return found


def parse(setting: Setting, given: Given, mistakes: Mistakes) -> list[Any]:
    """Turn texts into values.

    Args:
        setting: The setting.
        given: What one source says of it.
        mistakes: Gets a line for each text that cannot be read.

    Returns:
        The values of the texts that can.
    """
    values = []
    for text in given.texts:
        if setting.choices and text.strip() not in setting.choices:
            near = suggestion(text, setting.choices)
            mistakes.add(given.source, f"{text[:60]!r} is not one of {', '.join(setting.choices)}{near}")
            continue
        try:
            values.append(setting.parse(text.strip() if setting.choices else text))
        except ValueError as error:
            mistakes.add(given.source, str(error))
    return values


def load_flags(command: str, flags: Mapping[str, object]) -> dict[str, Any]:
    """Read a command's flags alone, for a command that looks at no other source, as ``offers``.

    Args:
        command: The command.
        flags: Parameter name to value, as click hands them over.

    Returns:
        Field of the setting to value.

    Raises:
        ConfigError: Names every mistake.
    """
    settings, mistakes = settings_for(command), Mistakes()
    given = from_flags(flags, settings, Path())
    values = {setting.field: setting.default for setting in settings.values()}
    for name, texts in given.items():
        parsed = parse(settings[name], texts, mistakes)
        if parsed:
            values[settings[name].field] = parsed[-1] if settings[name].shape is Shape.ONE else tuple(parsed)
    mistakes.tell()
    return values


def from_environment(
    environ: Mapping[str, str], settings: Mapping[str, Setting], cwd: Path, mistakes: Mistakes
) -> dict[str, Given]:
    """Take the variables that are set; an empty one counts as not set, since CI systems pass those on.

    Args:
        environ: The environment.
        settings: The command's settings.
        cwd: The current folder.
        mistakes: Gets a line for each GPU_RUNNER_ variable that nobody knows.

    Returns:
        By setting.
    """
    known = {setting.variable for setting in SETTINGS} | INFRASTRUCTURE_VARIABLES
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            mistakes.add(name, f"is no setting{suggestion(name, known)}")
    found = {}
    for name, setting in settings.items():
        texts = _split(environ.get(setting.variable, ""), setting)
        if texts:
            found[name] = Given(texts, setting.variable, cwd)
    return found


def _split(value: str, setting: Setting) -> tuple[str, ...]:
    if setting.shape in {Shape.ONE, Shape.FLAG}:
        return (value,) if value.strip() else ()
    if setting.words:
        return tuple(word for word in re.split(r"[\s,]+", value) if word)
    return tuple(line.strip() for line in value.splitlines() if line.strip())


def find_file(cwd: Path) -> Path | None:
    """Find gpu-runner.toml: in the current folder, else at the root of its git work tree.

    Args:
        cwd: The current folder.

    Returns:
        Its path, or None.
    """
    if (cwd / FILE_NAME).is_file():
        return cwd / FILE_NAME
    for folder in (cwd, *cwd.parents):
        if (folder / ".git").exists():
            return folder / FILE_NAME if (folder / FILE_NAME).is_file() else None
    return None


def read_file(path: Path, shown: str, mistakes: Mistakes) -> dict[str, Any]:
    """Read a settings file.

    Args:
        path: The file.
        shown: What to call it.
        mistakes: Gets a line when it cannot be read.

    Returns:
        Its content; empty when it cannot be read.
    """
    # tomllib came with Python 3.11; tomli is the same code for 3.10.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        mistakes.add(shown, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        mistakes.add(shown, "is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        mistakes.add(shown, f"is not TOML: {error}")
    else:
        return document
    return {}


def from_document(
    document: Mapping[str, Any], shown: str, settings: Mapping[str, Setting], folder: Path, mistakes: Mistakes
) -> dict[str, Given]:
    """Take the settings of a file: its keys are named as the flags.

    Args:
        document: Content of the file.
        shown: What to call the file.
        settings: The command's settings; keys of other commands are passed over.
        folder: The file's folder.
        mistakes: Gets a line for each key that nobody knows and each value of a wrong type.

    Returns:
        By setting.
    """
    everywhere = {setting.name for setting in SETTINGS}
    found: dict[str, Given] = {}
    for key, value in document.items():
        name, source = key.replace("_", "-"), f"{shown}:{key}"
        if name == "limits":
            continue
        if name not in everywhere:
            mistakes.add(source, f"is no setting{suggestion(name, [*everywhere, 'limits'])}")
        elif name in found:
            mistakes.add(source, f"is given twice, also as {found[name].source}")
        elif name in settings:
            texts = _texts(value, settings[name], source, mistakes)
            if texts is not None:
                found[name] = Given(texts, source, folder)
    return found


def limits(document: Mapping[str, Any], shown: str, mistakes: Mistakes) -> dict[str, Cap]:
    """Take the caps of a file's ``[limits]``.

    Args:
        document: Content of the file.
        shown: What to call the file.
        mistakes: Gets a line for each mistake.

    Returns:
        By name of the cap, checked.
    """
    table = document.get("limits", {})
    if not isinstance(table, dict):
        mistakes.add(f"{shown}:limits", "is not a table; write [limits] on a line of its own")
        return {}
    capped = {setting.cap_name: setting for setting in SETTINGS if setting.cap is not CapRule.NONE}
    names = {setting.name for setting in SETTINGS}
    found = {}
    for key, value in table.items():
        name, source = key.replace("_", "-"), f"{shown}:limits.{key}"
        if name in capped:
            texts = _cap_texts(value, capped[name], source, mistakes)
            if texts is not None:
                found[name] = Cap(texts, source)
        elif name in names:
            mistakes.add(source, "is a setting and no limit; settings stand above [limits]")
        else:
            mistakes.add(source, f"is no limit{suggestion(name, capped)}")
    return found


def _cap_texts(value: Any, setting: Setting, source: str, mistakes: Mistakes) -> tuple[str, ...] | None:
    if setting.cap is CapRule.AMONG:
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return tuple(value)
        mistakes.add(source, f'is not a list of names; write {setting.cap_name} = ["a", "b"]')
        return None
    texts = _texts(value, setting, source, mistakes)
    if texts is not None:
        try:
            setting.parse(texts[0])
        except ValueError as error:
            mistakes.add(source, str(error))
            return None
    return texts


def _texts(value: Any, setting: Setting, source: str, mistakes: Mistakes) -> tuple[str, ...] | None:
    """The texts of a TOML value; None after noting a mistake."""
    if setting.shape is Shape.FLAG:
        if isinstance(value, (bool, str)):
            return (str(value),)
        mistakes.add(source, "is neither true nor false")
        return None
    if setting.shape is Shape.PAIRS and isinstance(value, dict):
        items: list[Any] = [
            f"{key}={_scalar(item)}" if _scalar(item) is not None else None for key, item in value.items()
        ]
    elif setting.shape in {Shape.LIST, Shape.PAIRS} and isinstance(value, list):
        items = [_scalar(item) for item in value]
    else:
        items = [_scalar(value)]
    if None in items:
        several = " or a list of texts" if setting.shape in {Shape.LIST, Shape.PAIRS} else ""
        mistakes.add(source, f"is a value of the wrong type; write a text in quotes{several}")
        return None
    return tuple(items)


def _scalar(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        return None  # Python refuses to write thousands of digits
    return str(value)
