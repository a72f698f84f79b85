"""The end of a run, for people and for machines."""

from __future__ import annotations

import json
import sys

import click

from provisioner import units
from provisioner.cli import failures, style
from provisioner.errors import GpuRunnerError, Outcome
from provisioner.pipeline.result import RunResult

_STEPS = (
    ("placed", None, "placed_s"),
    ("booted", "placed_s", "ready_s"),
    ("uploaded", "ready_s", "uploaded_s"),
    ("job", "job_started_s", "job_ended_s"),
    ("collected", "job_ended_s", "collected_s"),
    ("released", "collected_s", "released_s"),
)


def finish(result: RunResult, *, as_json: bool) -> int:
    """Tell how a run ended.

    Args:
        result: How it ended.
        as_json: Whether to print the document on stdout.

    Returns:
        The exit code.
    """
    outcome, exit_code = result.verdict()
    if as_json:
        sys.stdout.write(json.dumps(result.document(), indent=2) + "\n")
    for problem in result.problems:
        failures.print_error(_as_known(problem))
    if result.error is not None:
        failures.print_error(_as_known(result.error))
    _print_summary(result, outcome)
    if result.unconfirmed is not None:
        failures.print_error(result.unconfirmed)
    return int(exit_code)


def _as_known(error: BaseException) -> GpuRunnerError:
    if isinstance(error, GpuRunnerError):
        return error
    return GpuRunnerError(f"internal error: {type(error).__name__}: {error}", resolution="run it again with --debug")


def _print_summary(result: RunResult, outcome: Outcome) -> None:
    rows = [("outcome", _outcome_text(result, outcome)), ("lease", result.lease.id)]
    rows += [("time", _times_text(result))] if result.timeline else []
    rows += [("results", text)] if (text := _artifacts_text(result)) else []
    rows += [("cost", text)] if (text := _cost_text(result)) else []
    rows += [("machine", _release_text(result))]
    width = max(len(name) for name, _ in rows)
    click.echo("", err=True)
    for name, text in rows:
        click.echo(f"  {style.dim(name.ljust(width))}  {text}", err=True)


def _outcome_text(result: RunResult, outcome: Outcome) -> str:
    text = str(outcome)
    status = result.status
    if status is not None and status.exit_code is not None:
        text += f" (exit code {status.exit_code}" + (" of the set-up)" if status.failed_in == "setup" else ")")
    return style.good(text) if outcome is Outcome.OK else style.bad(text)


def _times_text(result: RunResult) -> str:
    parts, marks = [], result.timeline
    for name, begin, end in _STEPS:
        if end in marks and (begin is None or begin in marks):
            parts.append(f"{name} {units.format_duration(round(marks[end] - (marks[begin] if begin else 0.0), 1))}")
    return " · ".join(parts)


def _artifacts_text(result: RunResult) -> str:
    if not result.totals.files:
        return ""
    return f"{result.totals.files} files, {units.format_bytes(result.totals.bytes)} in {result.output}"


def _cost_text(result: RunResult) -> str:
    cost_usd = result.cost_usd()
    begin_s, end_s = result.timeline.get("placed_s"), result.timeline.get("released_s")
    own = "unknown (no price known)" if cost_usd is None else units.format_usd(cost_usd)
    if result.machine is None or begin_s is None or end_s is None:
        return ""
    return own


def _release_text(result: RunResult) -> str:
    release = result.release
    lease_id = result.lease.id
    if release is None:
        return "none was made"
    if release.kept_for_s is not None:
        left = units.format_duration(round(release.kept_for_s))
        verb = "logs -f" if result.detached else "ssh"
        then = f"`gpu-runner {verb} {lease_id}`, `gpu-runner down {lease_id}`"
        return f"left running, ends itself in {left} at the latest; {then}"
    if release.confirmed:
        return style.good("proven gone") + f" ({units.format_duration(round(release.seconds, 1))})"
    if release.billing_stopped:
        return style.warn("ended; still going: " + "; ".join(release.left))
    return style.bad("NOT CONFIRMED GONE: " + "; ".join(release.left))
