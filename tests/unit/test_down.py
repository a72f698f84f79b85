"""``down`` beside a run that ends by itself, and a cloud that cannot be read for a moment."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from provisioner.ci import Identity
from provisioner.cli import down
from provisioner.cli.context import App
from provisioner.errors import GpuRunnerError, NotFoundError, TransientError
from provisioner.models import Expect, Machine, MachineRef
from provisioner.store import LeaseStore
from tests.fakes import FakeClock, FakeProvider
from tests.unit.lease import machine


class Surprising(FakeProvider):
    """Its next looks at one machine, and its next requests, fail as told."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.describe_errors: deque[GpuRunnerError] = deque()

    def mark_releasing(self, ref: MachineRef, expect: Expect) -> None:
        if self.machines.pop(ref.id, None) is None or expect.lease_id:
            raise NotFoundError("it has just ended")

    def describe(self, ref: MachineRef) -> Machine:
        if self.describe_errors:
            raise self.describe_errors.popleft()
        return super().describe(ref)


@pytest.mark.parametrize("errors", [[], [TransientError("busy"), TransientError("busy")]])
def test_a_run_that_ends_while_it_is_asked_is_a_success(tmp_path: Path, errors: list[GpuRunnerError]) -> None:
    clock = FakeClock()
    provider = Surprising(clock)
    provider.describe_errors.extend(errors)
    provider.add(machine(controller_seen_s=1.0))
    app = App(clock, LeaseStore(tmp_path), Identity("gr-x", "team"))
    done = down._down(app, provider, "gr-one", now=False)
    assert done.was_there
    assert done.release.confirmed
    assert not provider.describe_errors
