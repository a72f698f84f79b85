"""The end of a run, for people and for machines."""

from __future__ import annotations

from provisioner import units
from provisioner.cli import failures, style
from provisioner.cli.streams import print_document, tell
from provisioner.errors import ExitCode, Outcome
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
    for problem in result.problems:
        failures.print_any(problem)
    if result.error is not None:
        failures.print_any(result.error)
    _print_summary(result, outcome)
    if result.unconfirmed is not None:
        failures.print_error(result.unconfirmed)
    if as_json and not print_document(result.document()):
        return int(exit_code) or ExitCode.INTERNAL
    return int(exit_code)


def _print_summary(result: RunResult, outcome: Outcome) -> None:
    rows = [("outcome", _outcome_text(result, outcome)), ("lease", result.lease.id)]
    rows += [("time", text)] if (text := _times_text(result)) else []
    rows += [("results", text)] if (text := _artifacts_text(result)) else []
    rows += [("cost", text)] if (text := _cost_text(result)) else []
    rows += [("machine", _release_text(result))]
    width = max(len(name) for name, _ in rows)
    tell("")
    for name, text in rows:
        tell(f"  {style.dim(name.ljust(width))}  {text}")


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
    used_s = result.used_s()
    if result.machine is None or used_s is None:
        return ""
    own = "unknown (its price is not known)" if cost_usd is None else units.format_usd(cost_usd)
    return own + _elsewhere_text(result, used_s) if cost_usd == 0 else own


def _elsewhere_text(result: RunResult, used_s: float) -> str:
    """What a rented GPU machine would have cost for the same time, where the own box costs nothing."""
    from provisioner.catalog.gpus import GpuWish
    from provisioner.catalog.quotes import cheapest_like

    offer = result.machine.offer if result.machine else None
    gpu = GpuWish(offer.gpu, offer.gpu_count) if offer and offer.gpu else None
    quote = cheapest_like(gpu, offer.gpu_memory_gib if offer and gpu else None, duration_s=used_s)
    if quote is None:
        return ""
    where = f"{quote.offer.provider} {quote.offer.instance_type} ({quote.offer.gpu}) in {quote.offer.region}"
    price = f"{units.format_usd(quote.price_usd_hour)}/h, list price of {quote.as_of}"
    return f" here; {units.format_usd(quote.cost_usd)} on {where} at {price}"


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
