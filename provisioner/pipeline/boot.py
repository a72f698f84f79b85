"""Boot: from a running machine to one that we talk to, and whose GPU is there."""

from __future__ import annotations

from typing import Protocol

from provisioner.errors import BootError, GpuMissingError
from provisioner.models import Machine
from provisioner.pipeline.base import Env
from provisioner.pipeline.connection import Connection
from provisioner.pipeline.engine import Ending

_GPU_QUERY = "nvidia-smi --query-gpu=name,memory.total,uuid,driver_version --format=csv,noheader,nounits"


class HasMachine(Protocol):
    """A step that has a machine, and the key to it, once it ran."""

    machine: Machine | None
    private_key: str


class Boot:
    """Connects to the machine of an earlier step.

    Args:
        env: The collaborators.
        source: The step that finds the machine.
    """

    name = "boot"

    def __init__(self, env: Env, source: HasMachine) -> None:
        self._env = env
        self._source = source
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The open line; only after ``run`` began.

        Raises:
            BootError: If there is none.
        """
        if self._connection is None:
            raise BootError("there is no machine to talk to")
        return self._connection

    def run(self) -> None:
        """Connect, and check the GPU that is paid for.

        Raises:
            BootError: The machine does not answer.
            GpuMissingError: The GPU is not there.
        """
        machine = self._source.machine
        if machine is None:
            raise BootError("there is no machine to connect to")
        self._env.observer.step(self.name, machine.ref.id)
        self._connection = Connection(self._env, machine, self._source.private_key)
        self._connection.open()
        if machine.offer is not None and machine.offer.gpu is not None:
            self._check_gpu(machine.offer.gpu_count)
        self._env.timeline.mark("ready_s")

    def cleanup(self, ending: Ending) -> None:  # noqa: ARG002 - the line closes either way
        """Close the line."""
        if self._connection is not None:
            self._connection.close()

    def _check_gpu(self, wanted: int) -> None:
        result = self.connection.link.call(lambda session: session.run(_GPU_QUERY, timeout_s=60.0))
        gpus = [line for line in result.stdout.decode(errors="replace").splitlines() if line.strip()]
        if result.exit_status != 0 or len(gpus) < max(1, wanted):
            raise GpuMissingError(
                f"the machine shows {len(gpus)} of {max(1, wanted)} GPUs",
                details=(result.stdout + result.stderr).decode(errors="replace").strip(),
                resolution="use an image with a current NVIDIA driver (--image), or another --instance-type",
            )
        self._env.observer.note("; ".join(gpus))
