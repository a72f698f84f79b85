"""What the user wants: flags before environment before gpu-runner.toml before defaults, every mistake told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisioner import ci, units
from provisioner.catalog.gpus import GpuWish
from provisioner.config_sources import (
    Cap,
    Given,
    Mistakes,
    find_file,
    from_document,
    from_environment,
    from_flags,
    limits,
    parse,
    read_file,
)
from provisioner.errors import ConfigError
from provisioner.models import OnControllerLoss
from provisioner.settings import CapRule, MarketPolicy, Setting, Shape, settings_for
from provisioner.times import Times, derive_times, max_ttl_for_budget

__all__ = [
    "HOSTED_CI_LIMIT_S",
    "MarketPolicy",
    "Placement",
    "RunConfig",
    "Times",
    "derive_times",
    "load_placement",
    "load_run",
    "max_ttl_for_budget",
]

RESULTS_FOLDER = "gpu-runner-results"
"""Below the current folder; it ignores itself, so that results are not uploaded with the next run."""

HOSTED_CI_LIMIT_S = 6 * 3600.0
"""A job on a machine of GitHub's own ends after six hours, and its identity token with it."""


@dataclass(frozen=True)
class Placement:
    """Which machine is wanted, and for how long at most; ``run`` and ``up`` share it. None means not given.

    Attributes:
        providers: Where to get it, by preference.
        gpu: Which GPU; None for a machine without.
        gpu_memory_gib: Memory of each GPU, at least.
        instance_types: The only types, where given; a ``*`` at the end matches any rest.
        regions: The only regions, likewise.
        zones: The only zones, likewise.
        market: How to buy.
        max_price_usd_hour: Highest price by the hour.
        max_cost_usd: Budget over all attempts.
        timeout_s: Longest time of the job, as given; ask ``times`` for what holds.
        ttl_s: Longest life of the machine, as given; ask ``times`` for what holds.
        fuse_s: The machine ends after this time if nobody checked in; None for the provider's default.
        idle_timeout_s: It ends after this time without job or session.
        heartbeat_timeout_s: The controller counts as lost after this time.
        image: Image to boot.
        disk_gib: Size of the root disk.
        lease_id: Id of the lease; None to make one.
        labels: The user's own tags.
        wait_capacity_s: How long to ask again when there is no stock; 0 for once.
        cap_timeout_s: The team's cap of the timeout.
        cap_ttl_s: The team's cap of the ttl.
    """

    providers: tuple[str, ...] = ("local",)
    gpu: GpuWish | None = None
    gpu_memory_gib: float | None = None
    instance_types: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    market: MarketPolicy = MarketPolicy.ON_DEMAND
    max_price_usd_hour: float | None = None
    max_cost_usd: float | None = None
    timeout_s: float | None = None
    ttl_s: float | None = None
    fuse_s: float | None = None
    idle_timeout_s: float = 600.0
    heartbeat_timeout_s: float = 900.0
    image: str | None = None
    disk_gib: int | None = None
    lease_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    wait_capacity_s: float = 0.0
    cap_timeout_s: float | None = None
    cap_ttl_s: float | None = None

    def times(self, boot_allowance_s: float, collect_allowance_s: float) -> Times:
        """How long a lease lasts on a provider.

        Args:
            boot_allowance_s: The provider's allowance from placing to the start of the job.
            collect_allowance_s: Its allowance for artifacts and release.

        Returns:
            The job's timeout and the lease's ttl.

        Raises:
            ConfigError: If the two do not fit together, or not under the team's caps.
        """
        return derive_times(
            self.timeout_s,
            self.ttl_s,
            boot_allowance_s,
            collect_allowance_s,
            cap_timeout_s=self.cap_timeout_s,
            cap_ttl_s=self.cap_ttl_s,
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that ``run`` is asked for.

    Attributes:
        argv: The job: a program and its arguments.
        placement: The machine.
        workdir: Folder to upload, which exists; None for the current folder.
        env: Variables of the job.
        secrets: Variables of the job that are masked in logs.
        setup: Shell commands to run before the job.
        artifacts: Globs of what to bring back.
        output: Where to, absolute; None for the default, see ``output_for``.
        require_artifacts: Whether a glob that matches nothing is an error.
        sync_every_s: How often artifacts are fetched while the job runs.
        keep_on_failure_s: How long the machine stays after a job that failed; 0 for not at all.
        detach: Whether to leave once the job runs.
        on_controller_loss: What becomes of the job when the controller is lost.
        hosted_ci: Whether the controller runs where a job ends after six hours.
        cwd: The current folder.
        sources: Setting to where its value came from: a flag, a variable, ``file:key``, or ``default``.
    """

    argv: tuple[str, ...]
    placement: Placement
    workdir: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    setup: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    output: Path | None = None
    require_artifacts: bool = False
    sync_every_s: float = 30.0
    keep_on_failure_s: float = 0.0
    detach: bool = False
    on_controller_loss: OnControllerLoss = OnControllerLoss.END
    hosted_ci: bool = False
    cwd: Path = field(default_factory=Path)
    sources: Mapping[str, str] = field(default_factory=dict)

    def output_for(self, lease_id: str) -> Path:
        """Where results go.

        Args:
            lease_id: The lease.

        Returns:
            The folder that was asked for, else one of the lease's own below the current folder.
        """
        return self.output or self.cwd / RESULTS_FOLDER / lease_id

    def times(self, boot_allowance_s: float, collect_allowance_s: float) -> Times:
        """As ``Placement.times``; the time that a failed job's machine is kept counts to the lease.

        Args:
            boot_allowance_s: The provider's allowance from placing to the start of the job.
            collect_allowance_s: Its allowance for artifacts and release.

        Returns:
            The job's timeout and the lease's ttl.

        Raises:
            ConfigError: If they do not fit, or if the CI job around us would end before this job's time is over.
        """
        times = self.placement.times(boot_allowance_s, collect_allowance_s + self.keep_on_failure_s)
        if problem := _hosted_ci_problem(times.timeout_s, hosted_ci=self.hosted_ci, detach=self.detach):
            raise ConfigError(problem, resolution="give a shorter --timeout, or --detach")
        return times


def load_run(
    flags: Mapping[str, object],
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    interactive: bool,
    config_file: Path | None = None,
) -> RunConfig:
    """Find out what ``run`` is asked for.

    Args:
        flags: Parameter name to value, as click hands them over.
        argv: The job.
        environ: The environment.
        cwd: The current folder.
        interactive: Whether a person sits at a terminal.
        config_file: Settings file to read instead of the one that is found.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: Names every mistake of every source.
    """
    found = _Resolver("run", environ, cwd)
    values = found.resolve(flags, config_file)
    found.add_pairs_from_environment(values, "env")
    found.add_pairs_from_environment(values, "secrets", needed=True)
    hosted = ci.is_hosted(environ)
    _check_job(found, values, argv, hosted=hosted)
    if values["on_controller_loss"] is None:
        finish = interactive and ci.detect(environ) is ci.CiSystem.NONE
        values["on_controller_loss"] = OnControllerLoss.FINISH if finish else OnControllerLoss.END
    for name in ("workdir", "output"):
        values[name] = found.path(name, values[name])
    if values["workdir"] is not None and not values["workdir"].is_dir():
        found.mistakes.add(found.sources["workdir"], f"{str(values['workdir'])!r} is not a folder")
    placement = _placement(found, values)
    found.mistakes.tell()
    own = {row.field: values[row.field] for row in settings_for("run").values() if not row.placement}
    return RunConfig(
        argv=tuple(argv), placement=placement, hosted_ci=hosted, cwd=cwd, sources=dict(found.sources), **own
    )


def load_placement(
    command: str,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    config_file: Path | None = None,
) -> Placement:
    """Find out which machine a command other than ``run`` is asked for.

    Args:
        command: The command, as ``up``.
        flags: Parameter name to value, as click hands them over.
        environ: The environment.
        cwd: The current folder.
        config_file: Settings file to read instead of the one that is found.

    Returns:
        The checked placement.

    Raises:
        ConfigError: Names every mistake of every source.
    """
    found = _Resolver(command, environ, cwd)
    placement = _placement(found, found.resolve(flags, config_file))
    found.mistakes.tell()
    return placement


class _Resolver:
    """One reading of all sources; collects mistakes and where each value came from."""

    def __init__(self, command: str, environ: Mapping[str, str], cwd: Path) -> None:
        self.settings = settings_for(command)
        self.environ = environ
        self.cwd = cwd
        self.mistakes = Mistakes()
        self.sources: dict[str, str] = {}
        self.caps: dict[str, Cap] = {}
        self._given: dict[str, Given] = {}

    def resolve(self, flags: Mapping[str, object], config_file: Path | None) -> dict[str, Any]:
        layers = [
            self._read_file(config_file),
            from_environment(self.environ, self.settings, self.cwd, self.mistakes),
            from_flags(flags, self.settings, self.cwd),
        ]
        values = self.merge(layers)
        for setting in self.settings.values():
            cap = self.caps.get(setting.cap_name)
            if cap is not None:
                self._apply_cap(setting, cap, values)
        return values

    def merge(self, layers: Sequence[Mapping[str, Given]]) -> dict[str, Any]:
        """Field to value; later layers are stronger."""
        values: dict[str, Any] = {}
        for setting in self.settings.values():
            value, source = setting.default, "default"
            pairs: dict[str, Any] = {}
            for layer in layers:
                if setting.name not in layer:
                    continue
                given = layer[setting.name]
                parsed = parse(setting, given, self.mistakes)
                if setting.shape is Shape.PAIRS:
                    pairs.update(parsed)
                elif parsed:
                    unique = dict.fromkeys(parsed) if setting.words else parsed
                    value = tuple(unique) if setting.shape is Shape.LIST else parsed[-1]
                source = given.source
                self._given[setting.name] = given
            values[setting.field] = pairs if setting.shape is Shape.PAIRS else value
            self.sources[setting.name] = source
        return values

    def add_pairs_from_environment(self, values: dict[str, Any], name: str, *, needed: bool = False) -> None:
        """Give the pairs that were named without a value the one of the environment."""
        setting = next(setting for setting in self.settings.values() if setting.field == name)
        for key, value in values[name].items():
            if value is not None:
                continue
            values[name][key] = self.environ.get(key, "")
            if key not in self.environ or (needed and not values[name][key]):
                state = "set, but empty" if key in self.environ else "not set"
                self.mistakes.add(self.sources[setting.name], f"the variable {key} is {state}")

    def path(self, name: str, value: str | None) -> Path | None:
        """The path of a setting, absolute: relative to the file that holds it, else to the current folder."""
        if value is None:
            return None
        given = self._given.get(name)
        return (self.cwd if given is None else given.folder) / value

    def _read_file(self, config_file: Path | None) -> dict[str, Given]:
        wanted = config_file or (Path(named) if (named := self.environ.get("GPU_RUNNER_CONFIG")) else None)
        path = self.cwd / wanted if wanted else find_file(self.cwd)
        if path is None:
            return {}
        shown = str(wanted) if wanted else path.name
        document = read_file(path, shown, self.mistakes)
        self.caps = limits(document, shown, self.mistakes)
        return from_document(document, shown, self.settings, path.parent.absolute(), self.mistakes)

    def cap_value(self, name: str) -> Any:
        """The value of a cap on a single-valued setting; None when there is none."""
        cap = self.caps.get(name)
        setting = next(setting for setting in self.settings.values() if setting.cap_name == name)
        return None if cap is None else setting.parse(cap.texts[0])

    def _apply_cap(self, setting: Setting, cap: Cap, values: dict[str, Any]) -> None:
        value, source = values[setting.field], self.sources[setting.name]
        bound = setting.parse(cap.texts[0]) if setting.cap is CapRule.MOST else cap.texts
        if value is None or value == ():
            fills = setting.cap_fills
        elif setting.cap is CapRule.MOST:
            # What nobody asked for is cut to the cap; what somebody asked for is refused.
            fills = value > bound and source == "default"
            if value > bound and not fills:
                asked = self._given[setting.name].texts[0]
                self.mistakes.add(source, f"{asked} is more than the {cap.texts[0]} that {cap.source} allows")
        else:
            fills = False
            for item in value if isinstance(value, tuple) else (value,):
                if not _covered(str(item), cap.texts):
                    shown = f"{source} of --{setting.name}" if source == "default" else source
                    self.mistakes.add(shown, f"{item} is not among {', '.join(cap.texts)}, which {cap.source} allows")
        if fills:
            values[setting.field], self.sources[setting.name] = bound, cap.source


def _covered(name: str, allowed: Sequence[str]) -> bool:
    return any(name == entry or (entry.endswith("*") and name.startswith(entry[:-1])) for entry in allowed)


def _placement(found: _Resolver, values: Mapping[str, Any]) -> Placement:
    own = {row.field: values[row.field] for row in found.settings.values() if row.placement}
    if own["gpu_memory_gib"] is not None and own["gpu"] is None:
        if found.sources["gpu"] != "default":
            found.mistakes.add(found.sources["gpu-memory"], f"asks for a GPU, and {found.sources['gpu']} for none")
        own["gpu"] = GpuWish(None)
    timeout_s, ttl_s = own["timeout_s"], own["ttl_s"]
    if timeout_s is not None and ttl_s is not None and ttl_s <= timeout_s:
        found.mistakes.add(
            found.sources["ttl"],
            f"a lease of {_time(ttl_s)} does not hold the job's {_time(timeout_s)} ({found.sources['timeout']}) "
            "and the time to boot and collect; give a longer one, or only one of the two",
        )
    return Placement(**own, cap_timeout_s=found.cap_value("max-timeout"), cap_ttl_s=found.cap_value("max-ttl"))


def _check_job(found: _Resolver, values: Mapping[str, Any], argv: Sequence[str], *, hosted: bool) -> None:
    if not argv:
        found.mistakes.add(
            "command", "is missing; write it at the end, after --, as in: gpu-runner run -- python train.py"
        )
    for key in values["env"].keys() & values["secrets"].keys():
        found.mistakes.add(
            found.sources["env"], f"{key} is also a secret ({found.sources['secret']}); keep one of the two"
        )
    if problem := _hosted_ci_problem(values["timeout_s"], hosted_ci=hosted, detach=values["detach"]):
        found.mistakes.add(found.sources["timeout"], f"{problem}; give a shorter one, or --detach")


def _hosted_ci_problem(timeout_s: float | None, *, hosted_ci: bool, detach: bool) -> str:
    if not hosted_ci or detach or timeout_s is None or timeout_s <= HOSTED_CI_LIMIT_S:
        return ""
    return (
        f"{_time(timeout_s)} is longer than the {_time(HOSTED_CI_LIMIT_S)} that this hosted CI job and its token last"
    )


_time = units.format_duration
