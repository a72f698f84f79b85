"""The masker of the job's supervisor: nothing secret passes, and nothing else waits."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.resources import template_path

MASKER: Any = runpy.run_path(str(template_path("supervisor.py")), run_name="supervisor")["Masker"]

# Few letters, so that secrets overlap, contain and begin like each other and the text.
letters = st.binary(max_size=40).map(lambda raw: bytes(b"abc\n"[byte % 4] for byte in raw))
secrets = st.lists(letters.map(lambda raw: raw[:8]), max_size=4)


def masked(secrets: list[bytes], pieces: list[bytes]) -> bytes:
    masker = MASKER(secrets)
    return b"".join([masker.feed(piece) for piece in pieces] + [masker.flush()])


def patterns(secrets: list[bytes]) -> set[bytes]:
    """What must not be seen: the secrets, and their lines unless very short."""
    lines = {line.strip() for secret in secrets for line in secret.splitlines() if len(line.strip()) >= 4}
    return (set(secrets) | {secret.strip() for secret in secrets} | lines) - {b""}


def reference(secrets: list[bytes], text: bytes) -> bytes:
    """The plainest way to mask: mark every byte of every occurrence, then replace each marked run."""
    hidden = [False] * len(text)
    for pattern in patterns(secrets):
        for at in range(len(text) - len(pattern) + 1):
            if text[at : at + len(pattern)] == pattern:
                hidden[at : at + len(pattern)] = [True] * len(pattern)
    out = b""
    for at, hide in enumerate(hidden):
        if not hide:
            out += text[at : at + 1]
        elif at == 0 or not hidden[at - 1]:
            out += b"***"
    return out


@given(secrets, st.lists(letters, max_size=6))
def test_any_chunking_masks_as_the_plain_way_masks_the_whole(secrets: list[bytes], pieces: list[bytes]) -> None:
    assert masked(secrets, pieces) == reference(secrets, b"".join(pieces))


@given(secrets, letters)
def test_byte_by_byte_is_the_same_too(secrets: list[bytes], text: bytes) -> None:
    assert masked(secrets, [bytes([byte]) for byte in text]) == reference(secrets, text)


@given(secrets, st.lists(letters, max_size=6))
def test_no_secret_is_ever_seen(secrets: list[bytes], pieces: list[bytes]) -> None:
    shown = masked(secrets, pieces)
    for pattern in patterns(secrets):
        assert pattern not in shown


@given(st.lists(st.binary(min_size=1, max_size=6), max_size=3), st.lists(st.binary(max_size=30), max_size=5))
def test_arbitrary_bytes_pass_when_they_hold_no_secret(secrets: list[bytes], pieces: list[bytes]) -> None:
    assert masked(secrets, pieces) == reference(secrets, b"".join(pieces))


@given(secrets, st.lists(letters, max_size=6))
def test_what_waits_could_be_a_secret(secrets: list[bytes], pieces: list[bytes]) -> None:
    masker = MASKER(secrets)
    for piece in pieces:
        masker.feed(piece)
        held = masker._held
        assert held == b"" or any(pattern.startswith(held) and pattern != held for pattern in patterns(secrets))


def test_a_line_is_shown_at_once() -> None:
    masker = MASKER([b"geheim"])
    assert masker.feed(b"epoch 1\n") == b"epoch 1\n"
    assert masker.feed(b"a ge") == b"a "
    assert masker.feed(b"nau") == b"genau"
    assert masker.feed(b" geheim!") == b" ***!"


@pytest.mark.parametrize("cut", range(1, 12))
def test_the_longest_of_overlapping_secrets_wins_wherever_the_stream_is_cut(cut: int) -> None:
    text = b"x token-1234 y"
    assert masked([b"token", b"token-1234", b"n-12"], [text[:cut], text[cut:]]) == b"x *** y"


def test_each_line_of_a_secret_of_several_lines() -> None:
    key = b"-----BEGIN KEY-----\nAAAAB3Nza\n{\nC1yc2E\n-----END KEY-----\n"
    assert masked([key], [b"saw C1yc2E and { in it\n"]) == b"saw *** and { in it\n"
    assert masked([key], [b"all: " + key + b"."]) == b"all: ***."


def test_without_secrets_nothing_is_touched() -> None:
    assert masked([], [b"\x00\xff***"]) == b"\x00\xff***"
    assert masked([b""], [b"abc"]) == b"abc"


def test_a_chunk_full_of_a_short_secret_takes_a_moment_only() -> None:
    assert masked([b"a"], [b"a" * 65536] * 8) == b"***"
    assert masked([b"a" * 3000], [b"a" * 65536] * 4) == b"***"
