"""Aligned columns of text; no library, because one that draws tables costs more than the whole command."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def lines(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> list[str]:
    """Lay a table out.

    Args:
        header: Names of the columns.
        rows: Cells; as many in each row as there are columns. What a terminal would act on is shown as ``?``.
        right: The columns that are aligned at the right, by name: those of figures.

    Returns:
        The header and the rows, one line each, without trailing blanks.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    # One format string for all rows: whole tables are thousands of them.
    form = "  ".join(f"{{:{'>' if name in right else '<'}{width}}}" for name, width in zip(header, widths, strict=True))
    return [_plain(form.format(*row).rstrip()) for row in (header, *rows)]


def _plain(line: str) -> str:
    return line if line.isprintable() else "".join(char if char.isprintable() else "?" for char in line)
