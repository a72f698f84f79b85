from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner.catalog.gpus import GpuWish
from provisioner.cli.options import options_for
from provisioner.config import (
    MarketPolicy,
    Placement,
    RunConfig,
    Times,
    derive_times,
    load_placement,
    load_run,
    max_ttl_for_budget,
)
from provisioner.errors import BudgetError, ConfigError
from provisioner.models import OnControllerLoss
from provisioner.settings import SETTINGS, settings_for

HOSTED = {"CI": "true", "GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "github-hosted"}


def load(
    folder: Path,
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    toml: str | None = None,
    argv: tuple[str, ...] = ("true",),
    interactive: bool = False,
    config_file: Path | None = None,
) -> RunConfig:
    if toml is not None:
        (folder / "gpu-runner.toml").write_text(toml, encoding="utf-8")
    return load_run(
        flags or {}, argv, environ=environ or {}, cwd=folder, interactive=interactive, config_file=config_file
    )


def mistakes(folder: Path, flags: Mapping[str, object] | None = None, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, flags, **more)
    assert caught.value.brief
    assert caught.value.resolution
    return caught.value.details.splitlines()


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.placement == Placement()
    assert config.argv == ("true",)
    assert (config.env, config.secrets, config.artifacts) == ({}, {}, ())
    assert config.sync_every_s == 30
    assert config.output_for("gr-x") == tmp_path / "gpu-runner-results" / "gr-x"
    assert set(config.sources.values()) == {"default"}


def test_every_row_of_the_table_is_a_field_and_every_field_a_row() -> None:
    rows = settings_for("run").values()
    placement = {field.name for field in dataclasses.fields(Placement)} - {"cap_timeout_s", "cap_ttl_s"}
    own = {field.name for field in dataclasses.fields(RunConfig)}
    own -= {"argv", "placement", "hosted_ci", "cwd", "sources"}
    assert {row.field for row in rows if row.placement} == placement
    assert {row.field for row in rows if not row.placement} == own


def test_the_defaults_of_the_table_are_those_of_the_classes(tmp_path: Path) -> None:
    assert load(tmp_path) == RunConfig(
        argv=("true",), placement=Placement(), cwd=tmp_path, sources=load(tmp_path).sources
    )


def test_all_settings_from_each_source_read_the_same(tmp_path: Path) -> None:
    given_flags: dict[str, object] = {
        "provider": ("local",), "gpu": "A10G:2", "gpu_memory": "24", "instance_type": ("g5.*",), "region": ("us-*",),
        "zone": ("us-east-1a", "us-east-1b"), "market": "spot-first", "max_price": "2.5", "max_cost": "10",
        "timeout": "2h", "ttl": "3h", "fuse": "15m", "idle_timeout": "5m", "heartbeat_timeout": "20m",
        "image": "ubuntu", "disk": "100", "lease_id": "gr-mine", "label": ("team=ml", "x=1"), "wait_capacity": "1h",
        "workdir": ".",
        "env": ("A=1", "B"), "secret": ("TOKEN",), "setup": ("pip install .",), "artifact": ("out/**", "*.json"),
        "output": "results", "require_artifacts": True, "sync_every": "10s", "keep_on_failure": "30m", "detach": True,
        "on_controller_loss": "end",
    }  # fmt: skip
    outside = {"B": "2", "TOKEN": "hush"}
    variables = dict(outside)
    document = []
    for name, value in given_flags.items():
        values = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
        variables[f"GPU_RUNNER_{name.upper()}"] = "\n".join(values)
        key = name.replace("_", "-")
        document.append(f"{key} = {values!r}" if isinstance(value, tuple) else f"{key} = {str(value)!r}")
    assert len(given_flags) == len(settings_for("run"))

    by_flag = load(tmp_path, given_flags, environ=outside)
    by_variable = load(tmp_path, environ=variables)
    by_file = load(tmp_path, environ=outside, toml="\n".join(document))

    assert by_flag.placement == by_variable.placement == by_file.placement
    assert by_flag.placement.gpu == GpuWish("A10G", 2)
    assert by_flag.placement.market is MarketPolicy.SPOT_FIRST
    assert by_flag.placement.labels == {"team": "ml", "x": "1"}
    assert by_flag.env == {"A": "1", "B": "2"}
    assert by_flag.secrets == {"TOKEN": "hush"}
    assert by_flag.output == tmp_path / "results"
    assert "hush" not in repr(by_flag)
    for config in (by_variable, by_file):
        assert dataclasses.replace(config, sources=by_flag.sources) == by_flag
    assert by_flag.sources["idle-timeout"] == "--idle-timeout"
    assert by_variable.sources["idle-timeout"] == "GPU_RUNNER_IDLE_TIMEOUT"
    assert by_file.sources["idle-timeout"] == "gpu-runner.toml:idle-timeout"


def test_flags_before_environment_before_file_before_default(tmp_path: Path) -> None:
    toml = 'timeout = "1m"\nfuse = "1m"\nidle-timeout = "1m"\n'
    environ = {"GPU_RUNNER_TIMEOUT": "2m", "GPU_RUNNER_FUSE": "2m"}
    config = load(tmp_path, {"timeout": "3m"}, environ=environ, toml=toml).placement
    assert (config.timeout_s, config.fuse_s, config.idle_timeout_s, config.heartbeat_timeout_s) == (180, 120, 60, 900)


def test_lists_replace_and_pairs_add_up(tmp_path: Path) -> None:
    toml = 'artifact = ["a", "b"]\n[env]\nA = "file"\nB = 2\n'
    config = load(tmp_path, {"artifact": ("c",), "env": ("A=flag",)}, environ={"GPU_RUNNER_ENV": "C=x y"}, toml=toml)
    assert config.artifacts == ("c",)
    assert config.env == {"A": "flag", "B": "2", "C": "x y"}


def test_the_same_command_may_be_set_up_twice(tmp_path: Path) -> None:
    assert load(tmp_path, {"setup": ("make", "make")}).setup == ("make", "make")


def test_names_in_a_variable_may_stand_between_commas(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"GPU_RUNNER_ZONE": "a-1, b-1\nc-1"}).placement.zones == ("a-1", "b-1", "c-1")


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"GPU_RUNNER_GPU": "", "GPU_RUNNER_DETACH": " "}).placement.gpu is None


def test_a_flag_can_be_turned_off_again(tmp_path: Path) -> None:
    assert load(tmp_path, toml="detach = true").detach
    config = load(tmp_path, {"detach": False}, toml="detach = true")
    assert not config.detach
    assert config.sources["detach"] == "--no-detach"
    assert not load(tmp_path, environ={"GPU_RUNNER_DETACH": "off"}).detach


def test_every_mistake_of_every_source_is_told_at_once(tmp_path: Path) -> None:
    lines = mistakes(
        tmp_path,
        {"market": "sopt", "gpu": "A10G:0", "secret": ("HF_TOKEN",), "lease_id": "mine", "env": ("1=x",)},
        environ={"GPU_RUNNER_GPU_MEMRY": "3", "GPU_RUNNER_TTL": "90"},
        toml='tiemout = "2h"\ntimeout = "8h"\ndisk = 1.5\nfuse = true\n[limits]\nmax-timeout = "4h"\nmax-pric = 3\n',
        argv=(),
    )
    wanted = [
        "--market: 'sopt' is not one of on-demand, spot, spot-first; did you mean spot?",
        "--gpu: 'A10G:0' asks for 0 GPUs",
        "--secret: the variable HF_TOKEN is not set",
        "--lease-id: 'mine' is not a lease id",
        "--env: '1' is not the name of a variable",
        "GPU_RUNNER_GPU_MEMRY: is no setting; did you mean GPU_RUNNER_GPU_MEMORY?",
        "GPU_RUNNER_TTL: '90' is not a duration (no unit)",
        "gpu-runner.toml:tiemout: is no setting; did you mean timeout?",
        "gpu-runner.toml:timeout: 8h is more than the 4h that gpu-runner.toml:limits.max-timeout allows",
        "gpu-runner.toml:disk: '1.5' is not a whole number of GiB",
        "gpu-runner.toml:fuse: is a value of the wrong type",
        "gpu-runner.toml:limits.max-pric: is no limit; did you mean max-price?",
        "command: is missing",
    ]
    for start in wanted:
        assert any(line.startswith(start) for line in lines), start
    assert len(lines) == len(wanted)


def test_infrastructure_variables_and_those_of_other_commands_are_no_mistakes(tmp_path: Path) -> None:
    environ = {
        "GPU_RUNNER_STATE_DIR": "/x", "GPU_RUNNER_LOCAL_DIR": "/y", "GPU_RUNNER_LOCAL_SSHD": "/z",
        "GPU_RUNNER_AZURE_ENDPOINT": "http://127.0.0.1", "GPU_RUNNER_DEBUG": "1", "GPU_RUNNER_VCPUS": "2",
    }  # fmt: skip
    assert load(tmp_path, environ=environ).placement == Placement()


def test_private_values_stay_out_of_the_mistakes(tmp_path: Path) -> None:
    lines = mistakes(tmp_path, {"env": ("BAD-NAME=hush",), "secret": ("TOKEN=hush",)})
    assert "hush" not in " ".join(lines)
    assert len(lines) == 2


def test_a_secret_that_is_set_but_empty_is_a_mistake(tmp_path: Path) -> None:
    assert mistakes(tmp_path, {"secret": ("T",)}, environ={"T": ""}) == ["--secret: the variable T is set, but empty"]
    assert mistakes(tmp_path, {"env": ("T",)}) == ["--env: the variable T is not set"]
    assert load(tmp_path, {"env": ("T",)}, environ={"T": ""}).env == {"T": ""}
    assert "also a secret" in mistakes(tmp_path, {"env": ("T=1",), "secret": ("T",)}, environ={"T": "x"})[0]


def test_the_file_is_found_here_or_at_the_root_of_the_work_tree(tmp_path: Path) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    (tmp_path / "gpu-runner.toml").write_text('fuse = "1m"\nworkdir = "."', encoding="utf-8")
    assert load(here).placement.fuse_s is None  # no work tree: a file far above is somebody else's
    (tmp_path / ".git").mkdir()
    found = load(here)
    assert found.placement.fuse_s == 60
    assert found.workdir == tmp_path  # relative to the file that says so
    assert load(here, toml='fuse = "2m"').placement.fuse_s == 120


def test_a_file_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('fuse = "3m"', encoding="utf-8")
    assert load(tmp_path, toml='fuse = "1m"', config_file=Path("other.toml")).placement.fuse_s == 180
    assert load(tmp_path, environ={"GPU_RUNNER_CONFIG": "other.toml"}).placement.fuse_s == 180
    assert "none.toml: cannot be read" in mistakes(tmp_path, config_file=Path("none.toml"))[0]


def test_a_file_that_is_no_toml_is_one_mistake_among_others(tmp_path: Path) -> None:
    lines = mistakes(tmp_path, {"fuse": "x"}, toml="= 1")
    assert lines[0].startswith("gpu-runner.toml: is not TOML:")
    assert len(lines) == 2
    (tmp_path / "gpu-runner.toml").write_bytes(b"\xff")
    assert mistakes(tmp_path) == ["gpu-runner.toml: is not UTF-8 text"]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (
            "gpu-memory = 1\ngpu_memory = 2",
            "gpu-runner.toml:gpu_memory: is given twice, also as gpu-runner.toml:gpu-memory",
        ),
        ("timeout = 2026-01-01", "gpu-runner.toml:timeout: is a value of the wrong type; write a text in quotes"),
        ('gpu = ["A", "B"]', "gpu-runner.toml:gpu: is a value of the wrong type; write a text in quotes"),
        ("detach = 1", "gpu-runner.toml:detach: is neither true nor false"),
        ("limits = 3", "gpu-runner.toml:limits: is not a table; write [limits] on a line of its own"),
        (
            '[limits]\nfuse = "1m"',
            "gpu-runner.toml:limits.fuse: is a setting and no limit; settings stand above [limits]",
        ),
        (
            '[limits]\nregions = "x"',
            'gpu-runner.toml:limits.regions: is not a list of names; write regions = ["a", "b"]',
        ),
        ("disk = 0x" + "f" * 5000, "gpu-runner.toml:disk: is a value of the wrong type; write a text in quotes"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, toml: str, line: str) -> None:
    assert mistakes(tmp_path, toml=toml) == [line]


@pytest.mark.parametrize(
    ("limit", "flags", "refused"),
    [
        ('max-timeout = "1h"', {"timeout": "61m"}, "--timeout: 61m is more than the 1h"),
        ('max-ttl = "1h"', {"ttl": "2h"}, "--ttl: 2h is more than the 1h"),
        ("max-price = 2", {"max_price": "2.01"}, "--max-price: 2.01 is more than the 2"),
        ("max-cost = 5.0", {"max_cost": "6"}, "--max-cost: 6 is more than the 5.0"),
        ("max_disk = 100", {"disk": "101"}, "--disk: 101 is more than the 100"),
        ('max-keep-on-failure = "0s"', {"keep_on_failure": "1s"}, "--keep-on-failure: 1s is more than the 0s"),
        ('providers = ["aws"]', {"provider": ("local",)}, "--provider: local is not among aws"),
        ('providers = ["aws"]', {}, "default of --provider: local is not among aws"),
        ('markets = ["spot"]', {"market": "spot-first"}, "--market: spot-first is not among spot"),
        ('regions = ["eu-*"]', {"region": ("eu-west-1", "us-east-1")}, "--region: us-east-1 is not among eu-*"),
    ],
)
def test_a_team_caps_what_may_be_asked(tmp_path: Path, limit: str, flags: dict[str, object], refused: str) -> None:
    lines = mistakes(tmp_path, flags, toml=f"[limits]\n{limit}")
    assert len(lines) == 1
    assert lines[0].startswith(refused)
    assert "gpu-runner.toml:limits." in lines[0]


def test_a_cap_fills_what_nobody_asked_for(tmp_path: Path) -> None:
    toml = '[limits]\nmax-price = 2\nmax-cost = 5\nregions = ["eu-*"]\nmax-idle-timeout = "1m"\nmax-timeout = "30m"\n'
    placement = load(tmp_path, toml=toml).placement
    assert (placement.max_price_usd_hour, placement.max_cost_usd, placement.regions) == (2, 5, ("eu-*",))
    assert placement.idle_timeout_s == 60
    assert placement.times(10, 10) == Times(1800, 1820)
    assert load(tmp_path, toml=toml).sources["max-price"] == "gpu-runner.toml:limits.max-price"


def test_memory_of_a_gpu_asks_for_a_gpu(tmp_path: Path) -> None:
    assert load(tmp_path, {"gpu_memory": "24"}).placement.gpu == GpuWish(None)
    assert load(tmp_path, {"gpu": "none"}, toml='gpu = "A10G"').placement.gpu is None
    assert "asks for a GPU" in mistakes(tmp_path, {"gpu": "none", "gpu_memory": "24"})[0]


def test_a_lease_shorter_than_its_job_is_a_mistake(tmp_path: Path) -> None:
    lines = mistakes(tmp_path, {"ttl": "1h"}, toml='timeout = "2h"')
    assert "does not hold the job's 2h (gpu-runner.toml:timeout)" in lines[0]


def test_a_work_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert "is not a folder" in mistakes(tmp_path, {"workdir": "nowhere"})[0]


def test_a_hosted_ci_job_cannot_outlive_itself(tmp_path: Path) -> None:
    assert "6h that this hosted CI job" in mistakes(tmp_path, {"timeout": "7h"}, environ=HOSTED)[0]
    assert load(tmp_path, {"timeout": "7h", "detach": True}, environ=HOSTED).detach
    assert load(tmp_path, {"timeout": "6h"}, environ=HOSTED).hosted_ci
    with pytest.raises(ConfigError, match="hosted CI"):
        load(tmp_path, {"ttl": "8h"}, environ=HOSTED).times(60, 60)


@pytest.mark.parametrize(
    ("interactive", "environ", "loss"),
    [
        (True, {}, OnControllerLoss.FINISH),
        (False, {}, OnControllerLoss.END),
        (True, {"CI": "true"}, OnControllerLoss.END),
        (False, {"GPU_RUNNER_ON_CONTROLLER_LOSS": "finish"}, OnControllerLoss.FINISH),
    ],
)
def test_what_happens_on_controller_loss(
    tmp_path: Path, environ: dict[str, str], loss: OnControllerLoss, *, interactive: bool
) -> None:
    assert load(tmp_path, environ=environ, interactive=interactive).on_controller_loss is loss


def test_another_command_shares_the_placement(tmp_path: Path) -> None:
    placement = load_placement("up", {"gpu": "T4"}, environ={"GPU_RUNNER_ARTIFACT": "x"}, cwd=tmp_path)
    assert placement == Placement(gpu=GpuWish("T4"))
    with pytest.raises(ConfigError):
        load_placement("up", {"gpu": "?"}, environ={}, cwd=tmp_path)


free_text = st.text(max_size=40)
toml_value = st.recursive(
    st.booleans() | st.integers() | st.floats() | free_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(free_text, inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_free_form_input_gives_a_value_or_one_config_error(tmp_path: Path, data: st.DataObject) -> None:
    rows = settings_for("run")
    flags = data.draw(st.dictionaries(st.sampled_from([n.replace("-", "_") for n in rows]), free_text, max_size=4))
    variables = st.sampled_from([row.variable for row in SETTINGS]) | free_text.map(lambda rest: f"GPU_RUNNER_{rest}")
    environ = data.draw(st.dictionaries(variables, free_text, max_size=4))
    environ.pop("GPU_RUNNER_CONFIG", None)
    try:
        config = load(tmp_path, flags, environ=environ)
    except ConfigError as error:
        assert error.details  # noqa: PT017 - the other branch is as good
    else:
        assert config.placement.idle_timeout_s > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*settings_for("run"), "limits", "env"]), toml_value, max_size=4))
def test_free_form_files_give_a_value_or_one_config_error(tmp_path: Path, document: dict[str, Any]) -> None:
    try:
        load(tmp_path, toml="\n".join(f"{_toml(key)} = {_toml(value)}" for key, value in document.items()))
    except ConfigError as error:
        assert error.details  # noqa: PT017 - the other branch is as good


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_any_bytes_as_a_file_give_a_value_or_one_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gpu-runner.toml").write_bytes(content)
    try:
        load(tmp_path)
    except ConfigError as error:
        assert error.details  # noqa: PT017 - the other branch is as good


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" if not 0xD800 <= ord(char) < 0xE000 else "_" for char in value) + '"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return str(value)


allowance = st.floats(0, 1000)
some_time = st.floats(1, 1e6)
maybe = st.none() | some_time


@given(some_time, allowance, allowance)
def test_each_of_timeout_and_ttl_follows_from_the_other(timeout_s: float, boot_s: float, collect_s: float) -> None:
    times = derive_times(timeout_s, None, boot_s, collect_s)
    assert times.ttl_s == pytest.approx(boot_s + timeout_s + collect_s)
    assert derive_times(None, times.ttl_s, boot_s, collect_s).timeout_s == pytest.approx(timeout_s)
    assert derive_times(timeout_s, times.ttl_s, boot_s, collect_s) == times


@given(asked=st.tuples(maybe, maybe), allowances=st.tuples(allowance, allowance), caps=st.tuples(maybe, maybe))
def test_a_lease_always_holds_its_job(
    asked: tuple[float | None, float | None],
    allowances: tuple[float, float],
    caps: tuple[float | None, float | None],
) -> None:
    try:
        times = derive_times(*asked, *allowances, cap_timeout_s=caps[0], cap_ttl_s=caps[1])
    except ConfigError:
        return
    assert times.timeout_s > 0
    assert times.timeout_s + sum(allowances) <= times.ttl_s + 1e-5
    for value, was_asked, cap in zip((times.timeout_s, times.ttl_s), asked, caps, strict=True):
        assert value <= (cap or math.inf) or was_asked is not None


def test_times_by_default_and_what_does_not_fit() -> None:
    assert derive_times(None, None, 120, 60) == Times(3600, 3780)
    assert derive_times(None, None, 120, 60, cap_ttl_s=600) == Times(420, 600)
    with pytest.raises(ConfigError, match="does not hold --timeout 1h"):
        derive_times(3600, 3700, 120, 60)
    with pytest.raises(ConfigError, match="leaves no time"):
        derive_times(None, 100, 120, 60)
    with pytest.raises(ConfigError, match="max-ttl"):
        derive_times(3600, None, 120, 60, cap_ttl_s=3700)


def test_a_kept_machine_counts_to_its_lease(tmp_path: Path) -> None:
    config = load(tmp_path, {"timeout": "10m", "keep_on_failure": "20m"})
    assert config.times(30, 30) == Times(600, 600 + 60 + 1200)


def test_a_budget_becomes_a_time() -> None:
    assert max_ttl_for_budget(2.0, 1.0) == 1800
    assert max_ttl_for_budget(0.0, 0.0) == math.inf
    with pytest.raises(ConfigError, match="not known"):
        max_ttl_for_budget(None, 5.0)
    with pytest.raises(BudgetError):
        max_ttl_for_budget(2.0, 0.0)


@pytest.mark.parametrize("name", ["run", "up", "offers"])
def test_flags_of_a_command_come_from_the_table(name: str) -> None:
    got: dict[str, object] = {}

    @click.command()
    @options_for(name)
    def command(**flags: object) -> None:
        got.update(flags)

    assert CliRunner().invoke(command, []).exit_code == 0
    assert {key for key, value in got.items() if value not in {None, ()}} == set()
    assert [key.replace("_", "-") for key in got] == list(settings_for(name))
    for row in settings_for(name).values():
        assert row.help.endswith(".")
        assert f"--{row.name}" in CliRunner().invoke(command, ["--help"]).output


def test_flags_take_any_text_and_complete_choices() -> None:
    @click.command()
    @options_for("run")
    def command(**flags: object) -> None:
        click.echo(repr({key: value for key, value in flags.items() if value not in {None, ()}}))

    arguments = ["--market", "nonsense", "--no-detach", "--require-artifacts", "--artifact", "a", "--artifact", "b"]
    result = CliRunner().invoke(command, arguments)
    assert eval(result.output) == {  # noqa: S307 - our own repr
        "market": "nonsense", "detach": False, "require_artifacts": True, "artifact": ("a", "b"),
    }  # fmt: skip
    market = next(parameter for parameter in command.params if parameter.name == "market")
    complete = market.shell_complete(click.Context(command), "spot")
    assert [item.value for item in complete] == ["spot", "spot-first"]
