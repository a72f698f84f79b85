"""Measures what is promised, against peers in the same run, and prints a table. Fails when a limit does not hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' server is used here too

from _bench_startup import runs, startups
from _bench_table import Figure, table
from _bench_transfer import transfers

SECTIONS: dict[str, Callable[[], Iterator[Figure]]] = {
    "startup": startups,
    "run": runs,
    "transfer": transfers,
}


def main() -> int:
    """Run the sections that are named, or all."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("section", nargs="*", help=f"one of {', '.join(SECTIONS)}; all by default")
    names = parser.parse_args().section or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    figures: list[Figure] = []
    for name in names:
        for figure in SECTIONS[name]():
            print(f"measured {figure.what}", file=sys.stderr)
            figures.append(figure)
    print(table(figures))
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
