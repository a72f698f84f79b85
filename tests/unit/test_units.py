from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("1.5h", 5400), ("0s", 0),
        (" 2H ", 7200), ("1d2h3m4s", 93784), ("0.5s", 0.5),
    ],
)  # fmt: skip
def test_durations_that_people_write(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "1.5", "2 h", "h", "1h1h", "30m1h", "-1h", "1e3s", "inf", "nan", "1w", "٣s"]
)
def test_what_is_no_duration_is_named_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m") as caught:
        units.parse_duration(text)
    assert repr(text) in str(caught.value)


def test_a_bare_number_is_told_that_its_unit_is_missing() -> None:
    with pytest.raises(ValueError, match="no unit"):
        units.parse_duration("90")


@pytest.mark.parametrize("text", ["367d", "9" * 400 + "d", "9" * 5000 + "s"])
def test_absurd_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        units.parse_duration(text)


@given(st.integers(0, int(units.LONGEST_S)))
def test_whole_seconds_survive_format_and_parse(seconds: int) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@given(st.floats(0, units.LONGEST_S))
def test_fractions_survive_to_within_the_rounding(seconds: float) -> None:
    rounding_s = 0.0051 if seconds < 1 else 0.051 if seconds < 10 else 0.51
    assert abs(units.parse_duration(units.format_duration(seconds)) - seconds) <= rounding_s


@pytest.mark.parametrize("parse", [units.parse_duration, units.parse_usd, units.parse_gib])
@given(text=st.text())
def test_free_form_text_gives_a_value_or_a_value_error(parse: Callable[[str], float], text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse(text) < 1e36


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (0.35, "0.35s"),
        (4.24, "4.2s"),
        (9.99, "10s"),
        (59.7, "1m"),
        (5400, "1h30m"),
        (86400, "1d"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize("text", ["2.5", "$2.50", "2.50 USD", "$ 2.5", "2.5$"])
def test_money_that_people_write(text: str) -> None:
    assert units.parse_usd(text) == 2.5


@pytest.mark.parametrize("text", ["", "-1", "1,5", "two", "€3", "1e9", "inf", "9" * 400])
def test_what_is_no_money(text: str) -> None:
    with pytest.raises(ValueError, match=r"as 2\.50"):
        units.parse_usd(text)


@pytest.mark.parametrize(
    ("amount", "text"), [(None, "?"), (0, "$0.00"), (0.0042, "$0.0042"), (1.006, "$1.01"), (1234.5, "$1,234.50")]
)
def test_money_for_people(amount: float | None, text: str) -> None:
    assert units.format_usd(amount) == text


@given(st.integers(1, 10_000))
def test_gib_survives_format_and_parse(tenths: int) -> None:
    assert units.parse_gib(units.format_gib(tenths / 10)) == pytest.approx(tenths / 10)


@pytest.mark.parametrize(
    ("text", "gib"), [("24", 24), ("24GiB", 24), ("24 GB", 24), ("24g", 24), ("1.5T", 1536), ("512M", 0.5)]
)
def test_sizes_that_people_write(text: str, gib: float) -> None:
    assert units.parse_gib(text) == gib


@pytest.mark.parametrize("text", ["", "b", "24K", "-3", "many"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="24GiB"):
        units.parse_gib(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1_288_490_189, "1.2 GiB"), (1024**2 - 1, "1 MiB"),
        (5 * 1024**4, "5 TiB"),
    ],
)  # fmt: skip
def test_bytes_for_people(count: int, text: str) -> None:
    assert units.format_bytes(count) == text
