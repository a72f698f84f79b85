"""The state folder: private, atomic, and never the truth."""

from __future__ import annotations

import json
import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import ConfigError
from provisioner.models import LeaseRecord, OnControllerLoss
from provisioner.store import LeaseStore, state_dir, write_atomically
from tests.unit.lease import LEASE, lease

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
RECORD = LeaseRecord(LEASE, "fake", "here", 2, "gr-one-2", NOW, 4711)


def record(holder: str = "me", lease_id: str = "gr-one") -> LeaseRecord:
    mine = lease(id=lease_id, holder=holder, labels={"a": "b"}, on_controller_loss=OnControllerLoss.FINISH)
    return LeaseRecord(mine, "fake", "here", 1, None, NOW, 4711)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path / "state")
    assert store.records() == []
    assert store.lease_ids() == []
    store.save(record())
    store.save_key("gr-one", "me", "PEM")
    again = LeaseStore(tmp_path / "state")
    assert again.records() == [record()]
    assert again.key("gr-one", "me") == "PEM"
    assert again.key("gr-one", "somebody else") is None
    again.set_machine("gr-one", "me", "gr-one-1")
    assert [found.machine_id for found in store.records()] == ["gr-one-1"]


def test_everything_in_it_is_private(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path)
    before = os.umask(0)
    try:
        store.save(record())
        store.save_key("gr-one", "me", "PEM")
    finally:
        os.umask(before)
    folder = tmp_path / "leases" / "gr-one" / "me"
    assert {path.name for path in folder.iterdir()} == {"key", "lease.json"}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (folder, *folder.iterdir()))


def test_two_holders_of_one_lease_do_not_see_each_other(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path)
    for holder in ("me", "you"):
        store.save(record(holder))
        store.save_key("gr-one", holder, f"key of {holder}")
    store.forget("gr-one", "me")
    assert store.key("gr-one", "me") is None
    assert store.key("gr-one", "you") == "key of you"
    assert store.lease_ids() == ["gr-one"]
    store.forget("gr-one")
    assert store.lease_ids() == []
    store.forget("gr-one")
    store.forget("gr-never", "me")


WORDS = st.sampled_from(["lease", "started_at", "id", "on_controller_loss", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


@given(content=st.binary(max_size=50) | JSON.map(lambda document: json.dumps(document).encode()))
def test_a_broken_record_is_left_out_and_its_lease_still_known(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    store = LeaseStore(tmp_path_factory.mktemp("state"))
    store.save(record())
    store.save(record(lease_id="gr-two"))
    path = next(store._leases.glob("gr-two/*/lease.json"))
    path.write_bytes(content)
    assert store.records() == [record()]
    assert store.lease_ids() == ["gr-one", "gr-two"]
    store.set_machine("gr-two", "me", "id")


def test_a_folder_that_cannot_be_written_is_told_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LeaseStore(tmp_path / "file")
    with pytest.raises(ConfigError) as caught:
        store.save(record())
    assert "GPU_RUNNER_STATE_DIR" in caught.value.resolution
    with pytest.raises(ConfigError):
        store.note_cleanup(NOW)


def test_a_write_that_fails_leaves_the_old_text_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_the_last_cleanup(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path / "state")
    assert store.last_cleanup() is None
    store.note_cleanup(NOW)
    assert store.last_cleanup() == NOW
    (tmp_path / "state" / "last-cleanup").write_text("yesterday")
    assert store.last_cleanup() is None


def test_where_it_is() -> None:
    assert state_dir({"GPU_RUNNER_STATE_DIR": "/a"}) == Path("/a")
    assert state_dir({"XDG_STATE_HOME": "/b"}) == Path("/b/gpu-runner")
    assert state_dir({}).parts[-3:] == (".local", "state", "gpu-runner")


def test_what_a_killed_writer_left_goes_with_a_later_write(tmp_path: Path) -> None:
    old, fresh, foreign = (tmp_path / f".{name}.tmp" for name in ("last-cleanup.0a", "last-cleanup.0b", "other.0c"))
    for path in (old, fresh, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    LeaseStore(tmp_path).note_cleanup(NOW)
    assert (old.exists(), fresh.exists(), foreign.exists()) == (False, True, True)


def test_what_a_visit_needs_is_private_and_forgotten_with_its_lease(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path)
    folder = store.save_access("gr-one", "ssh-1", {"key": "PEM", "known_hosts": "line"})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"key": "PEM", "known_hosts": "line"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert store.lease_ids() == ["gr-one"]
    store.forget("gr-one", "ssh-1")
    assert store.lease_ids() == []
