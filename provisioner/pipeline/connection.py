"""The open line to one machine: link, job client, heartbeat and watch, opened and closed together."""

from __future__ import annotations

from provisioner.errors import BootError, CancelledError, GpuRunnerError, MachineLostError
from provisioner.models import Endpoint, Machine
from provisioner.pipeline.base import Env
from provisioner.pipeline.watch import Watch
from provisioner.remote.heartbeat import Heartbeat
from provisioner.remote.job import JobClient
from provisioner.remote.link import Link

_LONGEST_HEARTBEAT_S = 15.0


class Connection:
    """What the later steps talk through.

    Args:
        env: The collaborators.
        machine: A machine that runs and has an endpoint.
        private_key: OpenSSH PEM that it lets in.

    Attributes:
        link: The SSH connection that heals itself.
        job: The job on the machine.
        watch: Whether the machine is still there.
        job_began: Whether there may be a job, and so results; before that an end is one at once.
    """

    def __init__(self, env: Env, machine: Machine, private_key: str) -> None:
        self._env = env
        self._machine = machine
        self.link = Link(
            _endpoint(machine),
            private_key,
            clock=env.clock,
            cancel=env.cancel.hard,
            reconnect_for_s=env.provider.traits.reconnect_for_s,
        )
        self.job = JobClient(self.link)
        self.job_began = False
        self.watch = Watch(env, machine, self.link.abort)
        timeout_s = machine.lease.heartbeat_timeout_s if machine.lease else 4 * _LONGEST_HEARTBEAT_S
        self._heartbeat = Heartbeat(self.link, env.clock, min(_LONGEST_HEARTBEAT_S, timeout_s / 4))

    def open(self) -> None:
        """Start to watch, connect, put the tools in place, check in with the guard.

        Raises:
            BootError: If the machine cannot be reached in time, or ends first.
            CancelledError: If an end was asked for meanwhile.
        """
        self._env.cancel.when_soft(self._give_up_early)
        self._env.cancel.when_hard(self.link.abort)
        self.watch.start()  # a machine may also end while we try to reach it
        try:
            self.job.install()
        except (MachineLostError, CancelledError) as error:
            raise self._not_reached(error) from error
        self._heartbeat.start()

    def _not_reached(self, error: GpuRunnerError) -> GpuRunnerError:
        name, lost = self._machine.ref.id, self.watch.lost
        if lost is not None:
            return BootError(f"machine {name} ended before it could be used", details=lost.brief)
        if isinstance(error, CancelledError):
            return error
        return BootError(f"machine {name} runs, and does not answer over SSH", details=error.brief)

    def _give_up_early(self) -> None:
        if not self.job_began:
            self.link.abort(self._env.cancel.error())

    def close(self) -> None:
        """Close everything; safe at any stage."""
        self.watch.stop()
        self._heartbeat.stop()
        self.link.close()


def _endpoint(machine: Machine) -> Endpoint:
    if machine.endpoint is None:
        raise BootError(f"machine {machine.ref.id} has no address")
    return machine.endpoint
