"""The one table of settings: flags, variables, keys of gpu-runner.toml and the command reference come from it."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from provisioner import units
from provisioner.catalog.gpus import parse_wish
from provisioner.models import OnControllerLoss
from provisioner.providers import registry

ENVIRONMENT_PREFIX = "GPU_RUNNER_"
INFRASTRUCTURE_VARIABLES = frozenset({
    "GPU_RUNNER_STATE_DIR", "GPU_RUNNER_LOCAL_DIR", "GPU_RUNNER_LOCAL_SSHD", "GPU_RUNNER_LOCAL_CGROUPS",
    "GPU_RUNNER_AZURE_ENDPOINT", "GPU_RUNNER_DEBUG", "GPU_RUNNER_CONFIG", "GPU_RUNNER_JOB_INDEX", "GPU_RUNNER_STEP",
})  # fmt: skip
"""Variables that are no settings: folders, endpoints, and what a CI wrapper says of the lease's identity."""

LEASE_ID = re.compile(r"gr-[a-z0-9-]{1,40}")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
_LONGEST_LABEL = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\*?")


class MarketPolicy(str, enum.Enum):
    """Which markets may serve a lease."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    SPOT_FIRST = "spot-first"

    __str__ = str.__str__


class Shape(enum.Enum):
    """How several values of one setting come together."""

    ONE = "one"
    FLAG = "flag"
    LIST = "list"  # the strongest source replaces the weaker ones
    PAIRS = "pairs"  # sources add up, a key at a time; the stronger one wins a key


class CapRule(enum.Enum):
    """How ``[limits]`` bounds a setting."""

    NONE = "none"
    MOST = "most"  # max-<name>: no value may be larger
    AMONG = "among"  # <name>s: every value must be listed


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: As in the flag, without its dashes.
        field: The attribute it becomes.
        help: One sentence or two, for ``--help`` and the reference.
        parse: From text to value; raises ValueError.
        commands: Which commands have it.
        metavar: Placeholder of the value.
        default: The value when no source gives one.
        default_text: How ``--help`` says the default, where the value does not say it.
        shape: How several values come together.
        choices: The only values, if they are few.
        words: Whether values hold no comma and no space, so that a variable may separate them by either.
        cap: How ``[limits]`` bounds it.
        cap_fills: Whether no value means *no bound*, so that a cap becomes the value.
        placement: Whether it is part of Placement, which ``run`` and ``up`` share.
    """

    name: str
    field: str
    help: str
    parse: Callable[[str], Any]
    commands: frozenset[str]
    metavar: str = "TEXT"
    default: Any = None
    default_text: str = ""
    shape: Shape = Shape.ONE
    choices: tuple[str, ...] = ()
    words: bool = False
    cap: CapRule = CapRule.NONE
    cap_fills: bool = False
    placement: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper().replace("-", "_")

    @property
    def cap_name(self) -> str:
        """Its key in ``[limits]``; empty when it has none."""
        if self.cap is CapRule.MOST:
            return self.name if self.name.startswith("max-") else f"max-{self.name}"
        return f"{self.name}s" if self.cap is CapRule.AMONG else ""


def text(value: str) -> str:
    """A line of text, not empty and without control characters."""
    if not value.strip():
        raise ValueError("is empty")
    if any(ord(char) < ord(" ") or char == "\x7f" for char in value):
        raise ValueError("holds a control character; one line of plain text is understood")
    return value


def script(value: str) -> str:
    """A shell command, which may hold several lines."""
    if not value.strip():
        raise ValueError("is empty")
    if "\0" in value:
        raise ValueError("holds a NUL character")
    return value


def word(value: str) -> str:
    """A name as clouds give them: of a region, zone or type; a ``*`` at its end matches any rest."""
    if not _NAME.fullmatch(value.strip()):
        raise ValueError(f"{value[:60]!r} is not a name; letters, digits, '-', '_', '.', and a '*' at the end")
    return value.strip()


def truth(value: str) -> bool:
    """Yes or no, as environment variables say it."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.strip().lower() not in known:
        raise ValueError(f"{value[:60]!r} is neither true nor false; write true or false")
    return known[value.strip().lower()]


def some_time(value: str) -> float:
    """A duration above zero."""
    seconds = units.parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{value!r} is no time at all; write a duration above zero")
    return seconds


def some_usd(value: str) -> float:
    """An amount above zero."""
    amount = units.parse_usd(value)
    if amount <= 0:
        raise ValueError(f"{value!r} would rule out everything; write an amount above zero")
    return amount


def whole_gib(value: str) -> int:
    """A size in whole GiB, above zero."""
    gib = units.parse_gib(value)
    if gib < 1 or gib != int(gib):
        raise ValueError(f"{value!r} is not a whole number of GiB; write one of 1 or more, as 100")
    return int(gib)


def some_gib(value: str) -> float:
    """A size above zero."""
    gib = units.parse_gib(value)
    if gib <= 0:
        raise ValueError(f"{value!r} is not a size; write GiB above zero, as 24")
    return gib


def whole_number(value: str) -> int:
    """A whole number of 1 or more."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", value.strip(), re.ASCII):
        raise ValueError(f"{value[:60]!r} is not a count; write a whole number of 1 or more")
    return int(value)


def lease_id(value: str) -> str:
    """The id of a lease."""
    if not LEASE_ID.fullmatch(value):
        raise ValueError(f"{value[:60]!r} is not a lease id; write gr- and up to 40 of a-z, 0-9 and '-'")
    return value


def label(value: str) -> tuple[str, str]:
    """A tag of the user's own, KEY=VALUE."""
    key, equals, content = value.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key):
        raise ValueError(f"{value[:60]!r} is not a label; write KEY=VALUE, the key of letters, digits, '_', '.', '-'")
    if len(content) > _LONGEST_LABEL or not content.isprintable():
        raise ValueError(f"the value of label {key!r} is not one line of at most {_LONGEST_LABEL} characters")
    return key, content


def variable(value: str) -> tuple[str, str | None]:
    """A variable of the job, KEY or KEY=VALUE; what stands after ``=`` is never shown, it may be private."""
    key, equals, content = value.partition("=")
    if not VARIABLE_NAME.fullmatch(key):
        raise ValueError(f"{key[:60]!r} is not the name of a variable; write KEY or KEY=VALUE")
    if "\0" in content:
        raise ValueError(f"the value of {key!r} holds a NUL character")
    return key, content if equals else None


def secret_name(value: str) -> tuple[str, None]:
    """The name of a secret; its value is read from the environment variable of that name."""
    key, equals, _ = value.partition("=")
    if equals:
        raise ValueError(
            f"{key[:60]!r} is given with its value; set the variable of that name, and write the name alone"
        )
    if not VARIABLE_NAME.fullmatch(key):
        raise ValueError(f"{key[:60]!r} is not the name of a variable")
    return key, None


_BOTH = frozenset({"run", "up"})
_WISHES = frozenset({"run", "up", "offers"})
_RUN = frozenset({"run"})
_OFFERS = frozenset({"offers"})
CATALOG_PROVIDERS = ("aws", "azure", "gcp")
"""Providers that the bundled table knows; a version may know prices of a cloud that it cannot use yet."""


def _offer_providers() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*registry.names(), *CATALOG_PROVIDERS)))


_PLACEMENT = (
    Setting(
        "provider", "providers", "Where to get the machine. Repeat it for a preference list.", str, _BOTH,
        metavar="NAME", default=("local",), default_text="local", shape=Shape.LIST, words=True,
        choices=registry.names(), cap=CapRule.AMONG, placement=True,
    ),
    Setting(
        "provider", "providers", "Only offers of this provider. Repeat it for several.", str, _OFFERS,
        metavar="NAME", default=(), default_text="all", shape=Shape.LIST, words=True, choices=_offer_providers(),
    ),
    Setting(
        "gpu", "gpu", "The GPU: its name, as A10G or H100:8, or any. Without it: a machine without GPU.", parse_wish,
        _BOTH, metavar="NAME[:COUNT]", placement=True,
    ),
    Setting(
        "gpu", "gpu", "The GPU: its name, as A10G or H100:8, or any.", parse_wish, _OFFERS, metavar="NAME[:COUNT]",
    ),
    Setting(
        "gpu-memory", "gpu_memory_gib", "Memory of each GPU, at least. What is sold as 24 GB counts as 24.", some_gib,
        _WISHES, metavar="GIB", placement=True,
    ),
    Setting(
        "instance-type", "instance_types", "The provider's name of the machine type; a * at the end matches any rest.",
        word, _WISHES, metavar="TYPE", default=(), shape=Shape.LIST, words=True, cap=CapRule.AMONG, cap_fills=True,
        placement=True,
    ),
    Setting(
        "region", "regions", "Region; a * at the end matches any rest, as eu-*.", word, _WISHES, metavar="REGION",
        default=(), shape=Shape.LIST, words=True, cap=CapRule.AMONG, cap_fills=True, placement=True,
    ),
    Setting(
        "zone", "zones", "Zone.", word, _BOTH, metavar="ZONE", default=(), shape=Shape.LIST, words=True, placement=True,
    ),
    Setting(
        "market", "market", "How to buy: spot-first falls back to on-demand.", MarketPolicy, _BOTH,
        default=MarketPolicy.ON_DEMAND, default_text="on-demand", choices=tuple(m.value for m in MarketPolicy),
        cap=CapRule.AMONG, placement=True,
    ),
    Setting(
        "market", "market", "How to buy.", MarketPolicy, _OFFERS, default_text="both", choices=("on-demand", "spot"),
    ),
    Setting(
        "max-price", "max_price_usd_hour", "Highest price by the hour; an unknown price does not pass.", some_usd,
        _WISHES, metavar="USD_PER_HOUR", cap=CapRule.MOST, cap_fills=True, placement=True,
    ),
    Setting(
        "vcpus", "vcpus", "Virtual CPUs, at least.", whole_number, _OFFERS, metavar="COUNT",
    ),
    Setting(
        "max-cost", "max_cost_usd",
        "Budget of the lease over all its attempts; it becomes a deadline. An unknown price is refused with it.",
        some_usd, _BOTH, metavar="USD", cap=CapRule.MOST, cap_fills=True, placement=True,
    ),
    Setting(
        "timeout", "timeout_s", "Longest time of the job.", some_time, _BOTH, metavar="DURATION", default_text="1h",
        cap=CapRule.MOST, placement=True,
    ),
    Setting(
        "ttl", "ttl_s", "Longest life of the machine. Follows from --timeout, or --timeout from it.", some_time, _BOTH,
        metavar="DURATION", default_text="boot + timeout + collect", cap=CapRule.MOST, placement=True,
    ),
    Setting(
        "fuse", "fuse_s", "The machine ends after this time if nobody ever checked in.", some_time, _BOTH,
        metavar="DURATION", default_text="the provider's, mostly 10m", cap=CapRule.MOST, placement=True,
    ),
    Setting(
        "idle-timeout", "idle_timeout_s", "The machine ends after this time without job or session.", some_time, _BOTH,
        metavar="DURATION", default=600.0, default_text="10m", cap=CapRule.MOST, placement=True,
    ),
    Setting(
        "heartbeat-timeout", "heartbeat_timeout_s", "The controller counts as lost after this time without a sign.",
        some_time, _BOTH, metavar="DURATION", default=900.0, default_text="15m", cap=CapRule.MOST, placement=True,
    ),
    Setting(
        "image", "image", "Image to boot.", text, _BOTH, metavar="IMAGE", default_text="the provider's", placement=True,
    ),
    Setting(
        "disk", "disk_gib", "Size of the root disk.", whole_gib, _BOTH, metavar="GIB", default_text="the provider's",
        cap=CapRule.MOST, placement=True,
    ),
    Setting(
        "lease-id", "lease_id", "Id of the lease: gr- and up to 40 of a-z, 0-9 and '-'.", lease_id, _BOTH,
        metavar="ID", default_text="made from the CI job, or random", placement=True,
    ),
    Setting(
        "label", "labels", "A tag of your own on everything made. Repeatable.", label, _BOTH, metavar="KEY=VALUE",
        default=(), shape=Shape.PAIRS, placement=True,
    ),
    Setting(
        "wait-capacity", "wait_capacity_s", "How long to ask again when there is no stock anywhere.",
        units.parse_duration, _BOTH, metavar="DURATION", default=0.0, default_text="0s", cap=CapRule.MOST,
        placement=True,
    ),
)  # fmt: skip

_JOB = (
    Setting(
        "workdir", "workdir", "Folder to upload.", text, _RUN, metavar="DIR",
        default_text="the current folder, without what git ignores",
    ),
    Setting(
        "env", "env", "A variable of the job; KEY alone passes the present value on. Repeatable.", variable, _RUN,
        metavar="KEY[=VALUE]", default=(), shape=Shape.PAIRS,
    ),
    Setting(
        "secret", "secrets", "A variable of the job that is masked in logs; read from the variable KEY. Repeatable.",
        secret_name, _RUN, metavar="KEY", default=(), shape=Shape.PAIRS,
    ),
    Setting(
        "setup", "setup", "Shell command to run before the job, within its time. Repeatable.", script, _RUN,
        metavar="CMD", default=(), shape=Shape.LIST,
    ),
    Setting(
        "artifact", "artifacts", "Files to bring back, relative to the work folder. Repeatable.", text, _RUN,
        metavar="GLOB", default=(), shape=Shape.LIST,
    ),
    Setting(
        "output", "output", "Folder for what comes back.", text, _RUN, metavar="DIR",
        default_text="gpu-runner-results/<lease id>",
    ),
    Setting(
        "require-artifacts", "require_artifacts", "Whether a glob that matches nothing is an error.", truth, _RUN,
        default=False, shape=Shape.FLAG,
    ),
    Setting(
        "sync-every", "sync_every_s", "How often artifacts are fetched while the job runs.", some_time, _RUN,
        metavar="DURATION", default=30.0, default_text="30s",
    ),
    Setting(
        "keep-on-failure", "keep_on_failure_s", "How long the machine stays for you after a job that failed.",
        units.parse_duration, _RUN, metavar="DURATION", default=0.0, default_text="0s", cap=CapRule.MOST,
    ),
    Setting(
        "detach", "detach", "Whether to leave once the job runs; attach and collect pick it up.", truth, _RUN,
        default=False, shape=Shape.FLAG,
    ),
    Setting(
        "on-controller-loss", "on_controller_loss", "What becomes of the job when this process is lost.",
        OnControllerLoss, _RUN, choices=tuple(loss.value for loss in OnControllerLoss),
        default_text="end in CI, finish on a terminal",
    ),
)  # fmt: skip

SETTINGS: Sequence[Setting] = (*_PLACEMENT, *_JOB)
"""The table. A name may have a row for each command, where the commands differ."""


def settings_for(command: str) -> dict[str, Setting]:
    """The settings of one command.

    Args:
        command: ``run``, ``up`` or ``offers``.

    Returns:
        By name, in the order of the table.
    """
    return {setting.name: setting for setting in SETTINGS if command in setting.commands}
