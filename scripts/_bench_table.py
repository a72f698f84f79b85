"""What a measurement is, and how a table of them looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from provisioner.clock import SystemClock

ROUNDS = 3


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        what: What was measured.
        ours_s: Our time.
        peer: What it is measured against; empty for an absolute limit.
        peer_s: Its time.
        value: What is compared with the limit.
        limit: The most it may be.
        unit: ``x`` for a ratio, ``s`` or ``ms``.
    """

    what: str
    ours_s: float
    value: float
    limit: float
    peer: str = ""
    peer_s: float | None = None
    unit: str = "x"

    @property
    def ok(self) -> bool:
        """Whether the limit holds."""
        return self.value <= self.limit


def timed(function: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    clock = SystemClock()
    start_s = clock.elapsed_s()
    function()
    return clock.elapsed_s() - start_s


def against(
    what: str,
    ours: Callable[[], object],
    *,
    peer: str,
    theirs: Callable[[], object],
    limit: float,
    clean: Callable[[], object] = lambda: None,
) -> Figure:
    """Measure us and a peer in turn; the median of the rounds' ratios, which a load that comes and goes disturbs least.

    Args:
        what: What is measured.
        ours: Does it our way.
        peer: The peer's name.
        theirs: Does it the peer's way.
        limit: The most our time may be, as a multiple of the peer's.
        clean: Called after each, outside of the time.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for kept, function in ((times[1], theirs), (times[0], ours)):
            kept.append(timed(function))
            clean()
    ratios = [mine / other for mine, other in zip(*times, strict=True)]
    return Figure(what, median(times[0]), median(ratios), limit, peer, median(times[1]))


def table(figures: Iterable[Figure]) -> str:
    """The figures, aligned."""
    rows = [("what", "ours", "peer", "", "figure", "limit", "ok")]
    for figure in figures:
        peer_s = "" if figure.peer_s is None else f"{figure.peer_s:.2f} s"
        value, limit = (f"{number:.2f} {figure.unit}" for number in (figure.value, figure.limit))
        rows.append(
            (figure.what, f"{figure.ours_s:.2f} s", figure.peer, peer_s, value, limit, "yes" if figure.ok else "NO")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = {0, 2, 6}
    lines = (
        "  ".join(cell.ljust(widths[n]) if n in left else cell.rjust(widths[n]) for n, cell in enumerate(row))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
