"""A line to a machine for commands that only look: no heartbeat, so it is never taken for a controller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from provisioner.cli.context import App, Found
from provisioner.errors import BootError
from provisioner.pipeline.adopt import open_key
from provisioner.remote.link import Link

_CONNECT_FOR_S = 20.0


@contextmanager
def open_link(app: App, found: Found) -> Iterator[Link]:
    """Connect to a machine.

    Args:
        app: The collaborators.
        found: Which machine.

    Yields:
        The link, closed afterwards.

    Raises:
        BootError: It has no address (yet, or any more).
    """
    machine = found.machine
    if machine.endpoint is None:
        raise BootError(
            f"the machine of lease {machine.ref.lease_id} cannot be reached: it is {machine.state}",
            details=machine.reason,
            resolution=f"see `gpu-runner list`; end it with `gpu-runner down {machine.ref.lease_id}`",
        )
    key = open_key(found.provider, app.store, machine)
    link = Link(machine.endpoint, key, clock=app.clock, reconnect_for_s=_CONNECT_FOR_S)
    try:
        yield link
    finally:
        link.close()
