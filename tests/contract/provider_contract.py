"""The contract of a provider, as tests.

A provider adopts it with a ``World`` (how to reach it, and how to make a mess in it) and a subclass:

    class TestMine(ProviderContract):
        @pytest.fixture
        def world(self, tmp_path):
            with MyWorld(tmp_path) as world:
                yield world
"""

from __future__ import annotations

import abc
import contextlib
import io
import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import pytest

from provisioner.errors import LeaseHeldError, NotFoundError, RefusedError, TransientError
from provisioner.models import (
    Expect,
    LaunchIntent,
    Lease,
    Machine,
    MachineRef,
    MachineState,
    Offer,
    OnControllerLoss,
    Residue,
    Scope,
    SshKeys,
)
from provisioner.providers.base import Provider

HOLDER = "holder-one"
STRANGER = "holder-two"
_CALLERS = 8
Answer = TypeVar("Answer")


class World(abc.ABC):
    """One provider and its surroundings, fresh for each test.

    Attributes:
        boot_s: How long a machine may take to run.
    """

    boot_s: float = 20.0

    @property
    @abc.abstractmethod
    def factory(self) -> Callable[[], Provider]:
        """Makes a provider; it can be pickled, because other processes call it too."""

    @abc.abstractmethod
    def offer(self) -> Offer:
        """Something cheap that can be had."""

    @abc.abstractmethod
    def leave_residue(self, lease_id: str) -> Sequence[str]:
        """Leave behind what a crash could leave of a lease without a machine; the kinds that must be listed."""

    @abc.abstractmethod
    def unreadable(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, the provider cannot read all there is."""

    @abc.abstractmethod
    def left(self) -> list[str]:
        """What exists of anything made in this world, looked up without the provider; empty when all is gone."""

    def make_provider(self) -> Provider:
        """A provider as a new process would make it."""
        return self.factory()

    def make_intent(self, lease_id: str | None = None, *, attempt: int = 1, holder: str = HOLDER) -> LaunchIntent:
        """What a controller would ask for."""
        lease = Lease(
            id=lease_id or f"gr-{secrets.token_hex(4)}",
            holder=holder,
            owner="contract-suite",
            ttl_s=300.0,
            fuse_s=120.0,
            heartbeat_timeout_s=120.0,
            idle_timeout_s=120.0,
            on_controller_loss=OnControllerLoss.END,
            run="repository/1",
            labels={"colour": "green"},
        )
        return LaunchIntent(lease=lease, attempt=attempt, offer=self.offer(), ssh=ssh_keys())

    def wait_running(self, provider: Provider, ref: MachineRef) -> Machine:
        """Wait until a machine runs and SSH answers."""

        def running() -> Machine | None:
            machine = provider.describe(ref)
            assert machine.failure is None, machine.failure
            assert machine.state is not MachineState.TERMINATED, machine.reason
            return machine if machine.state is MachineState.RUNNING and machine.endpoint else None

        found = wait_for(running, self.boot_s)
        assert found is not None
        return found

    def is_everything_gone(self) -> bool:
        """Whether nothing is left, within the time that a removal may take."""
        return wait_for(lambda: not self.left(), self.boot_s) is not None


class ProviderContract:
    """Every provider keeps these; the names say what."""

    @pytest.fixture
    def provider(self, world: World) -> Iterator[Provider]:
        provider = world.make_provider()
        yield provider
        end_everything(provider)
        assert world.is_everything_gone(), world.left()

    def test_same_attempt_twice_is_one_machine(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        first = provider.launch(intent)
        world.wait_running(provider, first)
        again = world.make_provider().launch(intent)
        assert again == first
        assert [m.ref for m in machines_of(provider, intent)] == [first]

    def test_same_attempt_from_many_threads_is_one_machine(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        gate = threading.Barrier(_CALLERS)

        def launch(_: int) -> MachineRef:
            gate.wait()
            return provider.launch(intent)

        with ThreadPoolExecutor(_CALLERS) as pool:
            refs = set(pool.map(launch, range(_CALLERS)))
        assert len(refs) == 1
        machine = world.wait_running(provider, refs.pop())
        assert [m.ref for m in machines_of(provider, intent)] == [machine.ref]

    def test_same_attempt_from_several_processes_is_one_machine(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        at = time.time() + 3.0  # interpreters start, then all call at once
        with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
            answers = [pool.submit(launch_at, world.factory, intent, at) for _ in range(3)]
            refs = {answer.result(timeout=60) for answer in answers}
        assert len(refs) == 1
        machine = world.wait_running(provider, refs.pop())
        assert [m.ref for m in machines_of(provider, intent)] == [machine.ref]

    def test_two_holders_at_once_get_one_machine_and_one_refusal(self, world: World, provider: Provider) -> None:
        intents = [world.make_intent("gr-race", holder=f"holder-{i}") for i in range(_CALLERS)]
        gate = threading.Barrier(_CALLERS)

        def launch(intent: LaunchIntent) -> str:
            gate.wait()
            try:
                provider.launch(intent)
            except LeaseHeldError:
                return ""
            return intent.lease.holder

        with ThreadPoolExecutor(_CALLERS) as pool:
            winners = [holder for holder in pool.map(launch, intents) if holder]
        listed = machines_of(provider, intents[0])
        assert [m.lease.holder for m in listed if m.lease] == winners
        assert len(winners) == 1

    def test_another_holder_is_refused_and_changes_nothing(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        before = world.wait_running(provider, ref)
        with pytest.raises(LeaseHeldError) as refused:
            provider.launch(replace(intent, lease=replace(intent.lease, holder=STRANGER)))
        assert refused.value.resolution
        after = provider.describe(ref)
        assert (after.state, after.lease, after.endpoint) == (before.state, before.lease, before.endpoint)

    def test_two_attempts_are_both_listed_oldest_first_by_age(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        first = provider.launch(intent)
        second = provider.launch(replace(intent, attempt=2))
        listed = {m.attempt: m for m in machines_of(provider, intent)}
        assert {attempt: m.ref for attempt, m in listed.items()} == {1: first, 2: second}
        older, younger = listed[1].age_s, listed[2].age_s
        assert older is not None
        assert younger is not None
        assert older >= younger

    def test_first_listing_after_launch_shows_tags_and_deadline(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        (machine,) = machines_of(world.make_provider(), intent)
        assert machine.ref == ref
        assert machine.lease == intent.lease
        assert machine.attempt == intent.attempt
        assert not machine.releasing
        left_s = machine.hard_deadline_in_s()
        assert left_s is not None
        assert intent.lease.ttl_s - 60 < left_s <= intent.lease.ttl_s

    def test_scope_leaves_out_other_leases(self, world: World, provider: Provider) -> None:
        mine, other = world.make_intent(), world.make_intent()
        provider.launch(mine)
        provider.launch(other)
        assert {m.ref.lease_id for m in provider.inventory(Scope(mine.lease.id)).machines} == {mine.lease.id}
        everything = {m.ref.lease_id for m in provider.inventory(Scope()).machines}
        assert everything == {mine.lease.id, other.lease.id}

    def test_pinned_host_key_answers_and_the_user_key_opens(self, world: World, provider: Provider) -> None:
        machine = world.wait_running(provider, provider.launch(world.make_intent()))
        status, output, host_key = ssh(machine, "echo hello; exit 3")
        assert machine.endpoint is not None
        assert host_key == machine.endpoint.host_public_key == host_public_key()
        assert (status, output) == (3, b"hello\n")

    def test_terminate_twice_and_then_it_is_gone(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        world.wait_running(provider, ref)
        for _ in range(2):
            provider.terminate(ref, expectation(intent))
        assert_gone(world, provider, intent, ref)
        provider.terminate(ref, expectation(intent))

    def test_terminate_from_several_callers_at_once(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        world.wait_running(provider, ref)
        with ThreadPoolExecutor(_CALLERS) as pool:
            list(pool.map(lambda _: world.make_provider().terminate(ref, expectation(intent)), range(_CALLERS)))
        assert_gone(world, provider, intent, ref)

    def test_terminate_right_after_launch(self, world: World, provider: Provider) -> None:
        for attempt in range(1, 6):
            intent = replace(world.make_intent("gr-soon"), attempt=attempt)
            ref = provider.launch(intent)
            time.sleep(0.03 * (attempt - 1))  # at different stages of its start
            provider.terminate(ref, expectation(intent))
            assert_gone(world, provider, intent, ref)

    def test_terminate_beside_a_launch_in_flight(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        other = world.make_provider()
        done = threading.Event()

        def sweep() -> None:
            while not done.is_set():
                for machine in other.inventory(Scope(intent.lease.id)).machines:
                    other.terminate(machine.ref, expectation(intent))

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        try:
            for _ in range(10):
                with contextlib.suppress(TransientError):
                    provider.launch(intent)
        finally:
            done.set()
            sweeper.join()
        for machine in machines_of(provider, intent):
            provider.terminate(machine.ref, expectation(intent))
        assert machines_of(provider, intent) == []

    @pytest.mark.parametrize("wrong", ["lease", "holder"])
    def test_terminate_refuses_what_is_not_as_expected(self, world: World, provider: Provider, wrong: str) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        before = world.wait_running(provider, ref)
        lease_id = "gr-other" if wrong == "lease" else intent.lease.id
        holder = STRANGER if wrong == "holder" else intent.lease.holder
        with pytest.raises(RefusedError):
            provider.terminate(ref, Expect(lease_id, holder))
        assert provider.describe(ref).state is MachineState.RUNNING
        assert ssh(before, "true")[0] == 0

    def test_terminate_by_lease_alone_is_a_person_s_right(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        provider.terminate(ref, Expect(intent.lease.id))
        assert_gone(world, provider, intent, ref)

    def test_terminate_what_never_was_is_a_success(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        provider.terminate(unknown(provider, intent), expectation(intent))

    def test_describe_what_never_was(self, world: World, provider: Provider) -> None:
        with pytest.raises(NotFoundError):
            provider.describe(unknown(provider, world.make_intent()))

    def test_adopt_changes_the_holder_if_it_is_as_expected(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        provider.adopt(ref, expectation(intent), STRANGER)
        lease = provider.describe(ref).lease
        assert lease == replace(intent.lease, holder=STRANGER)
        with pytest.raises(RefusedError):
            provider.adopt(ref, expectation(intent), "holder-three")
        with pytest.raises(RefusedError):
            provider.terminate(ref, expectation(intent))
        with pytest.raises(LeaseHeldError):
            provider.launch(intent)
        provider.terminate(ref, Expect(intent.lease.id, STRANGER))
        assert_gone(world, provider, intent, ref)

    def test_adopt_by_many_at_once_has_one_winner(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        gate = threading.Barrier(_CALLERS)

        def adopt(number: int) -> str:
            gate.wait()
            try:
                world.make_provider().adopt(ref, expectation(intent), f"adopter-{number}")
            except RefusedError:
                return ""
            return f"adopter-{number}"

        with ThreadPoolExecutor(_CALLERS) as pool:
            winners = [name for name in pool.map(adopt, range(_CALLERS)) if name]
        lease = provider.describe(ref).lease
        assert lease is not None
        assert winners == [lease.holder]

    def test_mark_releasing_is_seen_by_everybody(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        with pytest.raises(RefusedError):
            provider.mark_releasing(ref, Expect(intent.lease.id, STRANGER))
        assert not provider.describe(ref).releasing
        provider.mark_releasing(ref, expectation(intent))
        provider.mark_releasing(ref, expectation(intent))
        assert world.make_provider().describe(ref).releasing
        assert [m.releasing for m in machines_of(provider, intent)] == [True]

    @pytest.mark.parametrize("verb", ["adopt", "mark_releasing"])
    def test_tags_of_what_never_was(self, world: World, provider: Provider, verb: str) -> None:
        intent = world.make_intent()
        ref = unknown(provider, intent)
        more = (STRANGER,) if verb == "adopt" else ()
        with pytest.raises(NotFoundError):
            getattr(provider, verb)(ref, expectation(intent), *more)

    def test_residue_is_listed_and_removed(self, world: World, provider: Provider) -> None:
        kinds = world.leave_residue("gr-leftover")
        listed = provider.inventory(Scope("gr-leftover"))
        assert not listed.unread
        assert {residue.kind for residue in listed.residue} >= set(kinds)
        assert {residue.lease_id for residue in listed.residue} == {"gr-leftover"}
        assert residue_ids(provider.inventory(Scope()).residue) >= residue_ids(listed.residue)
        assert provider.inventory(Scope("gr-another")).residue == ()
        for _ in range(2):  # what is gone already is a success
            for residue in listed.residue:
                provider.remove_residue(residue.id, residue.kind)
        assert provider.inventory(Scope("gr-leftover")).residue == ()

    def test_what_cannot_be_read_is_unread_and_never_none(self, world: World, provider: Provider) -> None:
        intent = world.make_intent()
        ref = provider.launch(intent)
        with world.unreadable():
            inventory = provider.inventory(Scope(intent.lease.id))
        assert inventory.unread
        assert all(part.error.brief and part.scope for part in inventory.unread)
        assert [m.ref for m in machines_of(provider, intent)] == [ref]


def wait_for(question: Callable[[], Answer], timeout_s: float) -> Answer | None:
    """Ask until the answer is true; None when it never was."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        answer = question()
        if answer:
            return answer
        time.sleep(0.02)
    return None


def machines_of(provider: Provider, intent: LaunchIntent) -> list[Machine]:
    """The living machines of a lease, as listed; everything must have been readable."""
    inventory = provider.inventory(Scope(intent.lease.id))
    assert not inventory.unread, inventory.unread
    return [machine for machine in inventory.machines if machine.alive]


def expectation(intent: LaunchIntent) -> Expect:
    """What the holder of the intent's lease expects."""
    return Expect(intent.lease.id, intent.lease.holder)


def unknown(provider: Provider, intent: LaunchIntent) -> MachineRef:
    """A machine that was never made."""
    return MachineRef(provider.name, intent.offer.region, intent.name, intent.lease.id)


def assert_gone(world: World, provider: Provider, intent: LaunchIntent, ref: MachineRef) -> None:
    """Gone as the design defines it: a terminal state, or NotFound after it was seen; no residue either."""

    def gone() -> bool:
        try:
            if provider.describe(ref).alive:
                return False
        except NotFoundError:
            pass
        inventory = provider.inventory(Scope(intent.lease.id))
        assert not inventory.unread
        return not inventory.residue and all(m.ref != ref or not m.alive for m in inventory.machines)

    assert wait_for(gone, world.boot_s), provider.inventory(Scope(intent.lease.id))


def end_everything(provider: Provider) -> None:
    """What a test leaves alive on purpose ends here."""
    inventory = provider.inventory(Scope())
    for machine in inventory.machines:
        provider.terminate(machine.ref, Expect(machine.ref.lease_id))
    for residue in provider.inventory(Scope()).residue:
        provider.remove_residue(residue.id, residue.kind)


def residue_ids(residue: Sequence[Residue]) -> set[tuple[str, str]]:
    """Names of left-overs."""
    return {(part.kind, part.id) for part in residue}


def launch_at(factory: Callable[[], Provider], intent: LaunchIntent, at: float) -> MachineRef:
    """Runs in a process of its own."""
    provider = factory()
    time.sleep(max(0.0, at - time.time()))
    return provider.launch(intent)


@cache
def _pairs() -> tuple[tuple[str, str], tuple[str, str]]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def pair() -> tuple[str, str]:
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return private.decode(), public.decode()

    return pair(), pair()


def ssh_keys() -> SshKeys:
    """The keys of every machine in these tests."""
    (_, user_public), (host_private, host_public) = _pairs()
    return SshKeys(user_public_key=user_public, host_private_key=host_private, host_public_key=host_public)


def host_public_key() -> str:
    """What every machine in these tests must show."""
    return _pairs()[1][1]


@contextlib.contextmanager
def connect(machine: Machine) -> Iterator[Any]:
    """An SSH transport to a machine, logged in."""
    import paramiko

    assert machine.endpoint is not None
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(_pairs()[0][0]))
    transport = paramiko.Transport((machine.endpoint.host, machine.endpoint.port))
    try:
        transport.connect(username=machine.endpoint.user, pkey=key)
        yield transport
    finally:
        transport.close()


def ssh(machine: Machine, command: str, *, data: bytes = b"") -> tuple[int, bytes, str]:
    """Run a command on a machine: its exit status, its output, and the host key that the server showed."""
    with connect(machine) as transport:
        host_key = transport.get_remote_server_key()
        channel = transport.open_session()
        channel.set_combine_stderr(True)
        channel.exec_command(command)
        if data:
            channel.sendall(data)
        channel.shutdown_write()
        output = b""
        while chunk := channel.recv(65536):
            output += chunk
        return channel.recv_exit_status(), output, f"{host_key.get_name()} {host_key.get_base64()}"
