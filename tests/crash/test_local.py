"""Provider ``local``: no point at which a dead controller leaves something for good."""

from __future__ import annotations

from tests.crash.suite import CrashSuite
from tests.crash.world import LocalWorld


class TestLocal(CrashSuite):
    world_type = LocalWorld
