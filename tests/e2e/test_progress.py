"""What a person sees while a transfer goes on."""

from __future__ import annotations

import os
import re

from tests.e2e.box import Box

_BYTES = 64 << 20


def test_a_terminal_shows_how_far_an_upload_is(box: Box) -> None:
    (box.work / "large.bin").write_bytes(os.urandom(_BYTES))
    done = box.job("--", "true", terminal=True).wait()
    assert done.code == 0, done
    shown = {int(match) for match in re.findall(r"([0-9]+)%\)", done.stderr)}
    assert any(0 < share <= 100 for share in shown), done.stderr
    assert "of 64 MiB" in done.stderr
    box.assert_nothing_left()
