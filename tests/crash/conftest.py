"""The table of the sweep, at the end of the test run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.crash.sweep import Row


def rows_of(reports: list[Any]) -> Iterator[Row]:
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "sweep" and getattr(report, "when", "") == "call":
                yield Row(**json.loads(value))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total: dict[tuple[str, str], Row] = {}
    for outcome in ("passed", "failed"):
        for row in rows_of(terminalreporter.stats.get(outcome, [])):
            key = (row.command, row.check)
            total[key] = total[key] + row if key in total else row
    if not total:
        return
    terminalreporter.section("crash sweep")
    terminalreporter.line("command  check          points  kills  missed  leaks  seconds")
    for _, row in sorted(total.items()):
        ended = f"  ended after {row.ended_s:.1f} s at most" if row.ended_s else ""
        terminalreporter.line(
            f"{row.command:8} {row.check:14} {row.points:6} {row.kills:6} {row.missed:7} {len(row.leaks):6} "
            f"{row.seconds:8.1f}{ended}"
        )
