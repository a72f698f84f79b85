"""What stands in ``machine.json``, to and from the nouns."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

from provisioner.models import Lease, Market, Offer, OnControllerLoss

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Tags:
    """The tags of one machine.

    Attributes:
        lease: Its lease, with the present holder.
        attempt: Which attempt made it.
        offer: What was bought.
        created_boottime_s: When, on CLOCK_BOOTTIME.
        created_utc: When, for people.
        boot_id: Which boot of the host that was.
        user: Login name.
        host_public_key: Pinned host key line.
        server: Path of sshd, or ``paramiko``.
        cgroup: Name of its cgroups.
        limits: Fields of ``cgroups.Limits``.
        gpus: UUIDs of its GPUs.
        releasing: Whether its release was asked for.
        linger_s: How long the note on its end stays.
    """

    lease: Lease
    attempt: int
    offer: Offer
    created_boottime_s: float
    created_utc: str
    boot_id: str
    user: str
    host_public_key: str
    server: str
    cgroup: str
    limits: dict[str, float | int | None]
    gpus: tuple[str, ...] = ()
    releasing: bool = False
    linger_s: float = 30.0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        data = dataclasses.asdict(self)
        priced_on = self.offer.priced_on
        data["offer"]["priced_on"] = None if priced_on is None else priced_on.isoformat()
        return {"version": VERSION, **data}

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> Tags | None:
        """From a JSON object that anybody may have spoilt.

        Args:
            data: What was read; None when nothing could be.

        Returns:
            The tags; None when they cannot be understood.
        """
        if data is None or data.get("version") != VERSION:
            return None
        try:
            fields = {field.name: data[field.name] for field in dataclasses.fields(cls)}
            fields["lease"] = _lease(data["lease"])
            fields["offer"] = _offer(data["offer"])
            fields["gpus"] = tuple(str(gpu) for gpu in data["gpus"])
            fields["created_boottime_s"] = float(data["created_boottime_s"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _lease(data: dict[str, Any]) -> Lease:
    numbers = ("ttl_s", "fuse_s", "heartbeat_timeout_s", "idle_timeout_s")
    return Lease(
        **{
            **data,
            **{name: float(data[name]) for name in numbers},
            "on_controller_loss": OnControllerLoss(data["on_controller_loss"]),
        }
    )


def _offer(data: dict[str, Any]) -> Offer:
    priced_on = data.get("priced_on")
    return Offer(
        **{
            **data,
            "market": Market(data["market"]),
            "priced_on": None if priced_on is None else date.fromisoformat(priced_on),
        }
    )
