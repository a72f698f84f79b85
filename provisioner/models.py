"""The nouns of gpu-runner, as frozen dataclasses; units stand in the names.

``None`` in a field means *not known*, never zero and never "no".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import date, datetime

from provisioner.errors import GpuRunnerError


class Market(str, enum.Enum):
    """How capacity is bought."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"

    __str__ = str.__str__


class OnControllerLoss(str, enum.Enum):
    """What the guard does when the controller has not been heard of for the heartbeat limit."""

    END = "end"
    FINISH = "finish"

    __str__ = str.__str__


class MachineState(str, enum.Enum):
    """Where a machine is in its life. UNKNOWN is an answer of its own and never means gone."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    TERMINATED = "terminated"
    UNKNOWN = "unknown"

    __str__ = str.__str__


@dataclass(frozen=True)
class Offer:
    """One way to buy a machine.

    Attributes:
        provider: Registry name of the provider.
        region: The provider's region; ``local`` has one, the host.
        zone: Zone in the region; None leaves it open.
        instance_type: The provider's name of the type.
        market: How it is bought.
        gpu: Model, as ``A10G``; None for a machine without GPU.
        gpu_count: Number of GPUs; 0 with a model means a fraction of one.
        gpu_memory_gib: Memory of each GPU.
        vcpus: Virtual CPUs.
        memory_gib: Main memory.
        arch: ``x86_64`` or ``arm64``.
        price_usd_hour: Price; None is not known, which is never 0.
        priced_on: The day that price was read.
        interruption_bucket: Spot only: 0 (<5 % a month) to 4 (>20 %).
    """

    provider: str
    region: str
    instance_type: str
    market: Market = Market.ON_DEMAND
    gpu: str | None = None
    gpu_count: int = 0
    gpu_memory_gib: float | None = None
    vcpus: int | None = None
    memory_gib: float | None = None
    arch: str | None = None
    price_usd_hour: float | None = None
    priced_on: date | None = None
    interruption_bucket: int | None = None
    zone: str | None = None


@dataclass(frozen=True)
class Lease:
    """The right to one machine until a deadline; what stands in the tags of everything made for it.

    Attributes:
        id: Our name for it, ``gr-...``; the machine's name and tag.
        holder: Random nonce of the process that holds it.
        owner: Who may suspect its machine of being an orphan.
        ttl_s: Hard deadline, in seconds from the provider's own creation time.
        fuse_s: The machine ends this long after its start if nobody ever checked in.
        heartbeat_timeout_s: The controller counts as lost after this long without a heartbeat.
        idle_timeout_s: The machine ends after this long without job or session.
        on_controller_loss: What the guard does then.
        run: Repository and CI run that asked for it, without the run attempt; empty outside CI.
        labels: The user's own tags.
    """

    id: str
    holder: str
    owner: str
    ttl_s: float
    fuse_s: float
    heartbeat_timeout_s: float
    idle_timeout_s: float
    on_controller_loss: OnControllerLoss
    run: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expect:
    """What a machine's tags must say before we touch it.

    Attributes:
        lease_id: The lease it must carry; None for a machine whose tags cannot be read (cleanup only).
        holder: The holder it must carry; None accepts any (an explicit order by a person, or cleanup).
    """

    lease_id: str | None
    holder: str | None = None


@dataclass(frozen=True)
class SshKeys:
    """Key material of one lease: made by the controller, dies with the lease.

    Attributes:
        user_public_key: OpenSSH line that the machine lets in.
        host_private_key: OpenSSH PEM of the machine's host key (the only private matter in user data).
        host_public_key: OpenSSH line of it, which the controller pins.
    """

    user_public_key: str
    host_private_key: str = field(repr=False)
    host_public_key: str = ""


@dataclass(frozen=True)
class LaunchIntent:
    """Everything one create call needs; written down before the call.

    Attributes:
        lease: What it is for.
        attempt: 1 for the first try; each further offer, or a retry after a failure, counts up.
        offer: What is bought.
        ssh: Keys to put on the machine.
        image: Image wished for; None for the provider's default.
        disk_gib: Size of the root disk; None for the default.
    """

    lease: Lease
    attempt: int
    offer: Offer
    ssh: SshKeys
    image: str | None = None
    disk_gib: int | None = None

    @property
    def name(self) -> str:
        """Name and token of this attempt: the same attempt is the same machine."""
        return f"{self.lease.id}-{self.attempt}"


@dataclass(frozen=True)
class MachineRef:
    """Enough to find a machine again.

    Attributes:
        provider: Registry name.
        region: Where it is.
        id: The provider's own id.
        lease_id: Our lease; None when its tags cannot be read.
    """

    provider: str
    region: str
    id: str
    lease_id: str | None


@dataclass(frozen=True)
class Endpoint:
    """Where a machine's SSH server answers.

    Attributes:
        host: Address.
        port: TCP port.
        user: Login name.
        host_public_key: Pinned OpenSSH host key line, ``ssh-ed25519 AAAA...``.
    """

    host: str
    port: int
    user: str
    host_public_key: str


@dataclass(frozen=True)
class Machine:
    """What a provider says of a machine, now.

    Attributes:
        ref: How to find it again.
        state: Life stage; UNKNOWN is not gone.
        lease: Its tags; None when they cannot be read.
        attempt: Which attempt made it; None when not known.
        age_s: Seconds since its creation, on the provider's own clock; None when not known.
        endpoint: Where SSH answers; None until known.
        offer: What was bought, as far as known.
        releasing: Whether somebody asked for its release (tag ``releasing``).
        billing_stopped: True only when the provider shows a state in which compute is no longer billed.
        controller_seen_s: Seconds since its guard last heard a controller; None when not known, never, or detached.
        soft_deadline_in_s: Seconds until its guard ends it unless told otherwise; None when there is none before the
            hard deadline, or it is not known.
        reason: Why it ended, where it ended itself.
        failure: The typed error of a create that failed late.
    """

    ref: MachineRef
    state: MachineState
    lease: Lease | None
    attempt: int | None = None
    age_s: float | None = None
    endpoint: Endpoint | None = None
    offer: Offer | None = None
    releasing: bool = False
    billing_stopped: bool = False
    controller_seen_s: float | None = None
    soft_deadline_in_s: float | None = None
    reason: str = ""
    failure: GpuRunnerError | None = None

    @property
    def alive(self) -> bool:
        """Whether it may still cost or hold something; unknown counts as alive."""
        return self.state is not MachineState.TERMINATED

    def hard_deadline_in_s(self) -> float | None:
        """Seconds until the hard deadline, negative when past; None when age or tags are not known."""
        if self.lease is None or self.age_s is None:
            return None
        return self.lease.ttl_s - self.age_s


@dataclass(frozen=True)
class Residue:
    """Something besides a machine that was made for a lease and is left over.

    Attributes:
        provider: Registry name.
        region: Where it is.
        kind: ``folder``, ``process``, ``cgroup``, ``volume``, ...
        id: The provider's id of it.
        lease_id: Whose it was; None when that cannot be read.
        age_s: Seconds since its creation; None when not known.
    """

    provider: str
    region: str
    kind: str
    id: str
    lease_id: str | None
    age_s: float | None = None


@dataclass(frozen=True)
class Unread:
    """A part of the inventory that could not be read: unknown, never "none"."""

    scope: str
    error: GpuRunnerError


@dataclass(frozen=True)
class Scope:
    """What an inventory is asked for.

    Attributes:
        lease_id: Only this lease's things; None for all.
    """

    lease_id: str | None = None


@dataclass(frozen=True)
class Inventory:
    """What is there, and what could not be read."""

    machines: tuple[Machine, ...] = ()
    residue: tuple[Residue, ...] = ()
    unread: tuple[Unread, ...] = ()


class CheckStatus(str, enum.Enum):
    """How a check of ``doctor`` went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"

    __str__ = str.__str__


@dataclass(frozen=True)
class Check:
    """One line of ``doctor``.

    Attributes:
        name: What was looked at.
        status: How it went; WARN means that something works less well, FAIL that a run cannot work.
        text: What was found.
        resolution: What to do about it.
    """

    name: str
    status: CheckStatus
    text: str
    resolution: str = ""


@dataclass(frozen=True)
class LeaseRecord:
    """What the controller writes down about a lease before it acts: a convenience, never the truth.

    Attributes:
        lease: The lease.
        provider: Where its machine is being made.
        region: The region of the current attempt.
        attempt: The current attempt.
        machine_id: The provider's id once known.
        started_at: Wall-clock time, for people.
        controller_pid: Process id of the controller, for people.
    """

    lease: Lease
    provider: str
    region: str
    attempt: int
    machine_id: str | None
    started_at: datetime
    controller_pid: int
