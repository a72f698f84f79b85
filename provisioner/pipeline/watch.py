"""Looking at the machine while a job runs: lost, ended by itself, or asked for by somebody else."""

from __future__ import annotations

import threading
from collections.abc import Callable

from provisioner.cancel import CancelReason
from provisioner.errors import ExitCode, GpuRunnerError, MachineLostError, NotFoundError
from provisioner.models import Machine, MachineRef, MachineState
from provisioner.pipeline.base import Env


class Watch:
    """A thread that asks the provider about one machine at the provider's pace.

    Args:
        env: The collaborators.
        machine: A machine that was seen running.
        when_lost: Called once when the machine is known to have ended.

    Attributes:
        lost: Why the machine is lost; None while it is not known to be.
    """

    def __init__(self, env: Env, machine: Machine, when_lost: Callable[[], None]) -> None:
        self._env = env
        self._ref: MachineRef = machine.ref
        self._holder = machine.lease.holder if machine.lease else None
        self._when_lost = when_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
        self.lost: MachineLostError | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> None:
        """Look once; an answer that is not one changes nothing."""
        try:
            machine = self._env.provider.describe(self._ref)
        except NotFoundError:
            self._lose("it is not there any more")
        except GpuRunnerError:
            return  # could not look: unknown is not gone
        else:
            self._judge(machine)

    def _judge(self, machine: Machine) -> None:
        if machine.state in {MachineState.TERMINATED, MachineState.STOPPED}:
            self._lose(machine.reason or f"its state is {machine.state}")
        elif machine.lease is not None and machine.lease.holder != self._holder:
            self._lose("another gpu-runner has taken the lease over")
        elif machine.releasing:
            self._env.cancel.request(CancelReason("ended by `gpu-runner down`", ExitCode.TERMINATED))

    def _lose(self, why: str) -> None:
        if self.lost is None and not self._stop.is_set():
            self.lost = MachineLostError(
                f"machine {self._ref.id} is lost: {why}", resolution="look at the job's log for what it did last"
            )
            self._when_lost()

    def _loop(self) -> None:
        while self.lost is None and not self._env.clock.wait(self._stop, self._env.provider.traits.watch_s):
            self.look()
