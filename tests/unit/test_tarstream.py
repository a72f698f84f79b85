# Names are bytes here, which pathlib does not take.
# ruff: noqa: PTH103, PTH114, PTH118, PTH120, PTH123, PTH208

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.remote import tarstream
from provisioner.remote.tarstream import CorruptError, Packer, Source, TruncatedError, Unpacker, WriteError
from tests.tools import find_python, require

NONCE = "0123456789abcdef"
PROGRAM = Path(tarstream.__file__)

components = (
    st.binary(min_size=1, max_size=120)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"-"))
    .filter(lambda raw: raw not in {b".", b".."})
)
trees = st.dictionaries(
    st.lists(components, min_size=1, max_size=3).map(b"/".join), st.binary(max_size=2000), max_size=8
)


@contextmanager
def scratch() -> Iterator[bytes]:
    """A folder for one hypothesis example."""
    with tempfile.TemporaryDirectory() as folder:
        yield os.fsencode(folder)


def write_tree(root: bytes, tree: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Write what fits: a name may be another's folder."""
    written = {}
    for name, content in sorted(tree.items()):
        path = os.path.join(root, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            continue
        written[name] = content
    return written


def read_tree(root: bytes) -> dict[bytes, bytes]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = Path(os.fsdecode(path)).read_bytes()
    return found


def packed(root: bytes | Path, globs: tuple[str, ...] = (".",), known: dict[str, list[int]] | None = None) -> bytes:
    out = io.BytesIO()
    tarstream.pack(os.fsencode(root), list(globs), known or {}, Packer(out.write, NONCE))
    return out.getvalue()


def unpacked(stream: bytes, folder: bytes | Path, **options: Any) -> tuple[dict[str, Any], Unpacker]:
    failed: list[str] = []
    unpacker = Unpacker(
        Source(io.BytesIO(stream).read),
        os.fsencode(folder),
        NONCE,
        on_batch=lambda _, bad: failed.extend(bad),
        **options,
    )
    report = unpacker.run()
    if failed:
        raise CorruptError(", ".join(failed))
    return report, unpacker


def raw_stream(members: list[tuple[bytes, bytes, bytes, bytes]]) -> bytes:
    """A well-formed stream of any members: name, kind, content, link target."""
    out = io.BytesIO()
    packer = Packer(out.write, NONCE)
    for name, kind, content, target in members:
        packer._out_frame(tarstream.header(name, kind, size=len(content), mode=0o644, target=target))
        packer._out(content)
        packer._out_frame(bytes(-len(content) % 512))
        text = hashlib.sha256(target if kind == b"2" else content).hexdigest() if kind != b"5" else ""
        packer._close(
            tarstream.Entry(tarstream.text_of(name), kind.decode(), len(content), 0, 0o644, text), len(content)
        )
    packer.finish({})
    return out.getvalue()


@settings(deadline=None, max_examples=60)
@given(trees)
def test_packing_and_unpacking_changes_nothing(tree: dict[bytes, bytes]) -> None:
    with scratch() as source, scratch() as output:
        tree = write_tree(source, tree)
        unpacked(packed(source), output)
        assert read_tree(output) == tree


@settings(deadline=None, max_examples=60)
@given(trees, st.data())
def test_a_flipped_bit_anywhere_is_found(tree: dict[bytes, bytes], data: st.DataObject) -> None:
    with scratch() as source, scratch() as output:
        tree = write_tree(source, tree)
        stream = bytearray(packed(source))
        place = data.draw(st.integers(0, len(stream) * 8 - 1))
        stream[place // 8] ^= 1 << place % 8
        with pytest.raises((CorruptError, TruncatedError)):
            unpacked(bytes(stream), output)
        assert read_tree(output).items() <= tree.items()


def test_every_flipped_bit_of_a_small_stream_is_found(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"hello")
    stream = packed(source)
    output = tmp_path / "output"
    for place in range(len(stream)):
        broken = stream[:place] + bytes([stream[place] ^ (1 << place % 8)]) + stream[place + 1 :]
        with pytest.raises((CorruptError, TruncatedError)):
            unpacked(broken, output)


@settings(deadline=None, max_examples=60)
@given(trees, st.data())
def test_a_stream_cut_anywhere_is_found(tree: dict[bytes, bytes], data: st.DataObject) -> None:
    with scratch() as source, scratch() as output:
        tree = write_tree(source, tree)
        stream = packed(source)
        with pytest.raises(TruncatedError):
            unpacked(stream[: data.draw(st.integers(0, len(stream) - 1))], output)
        assert read_tree(output).items() <= tree.items()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.binary(max_size=300).map(lambda raw: raw.replace(b"\0", b"-")),
                st.sampled_from(
                    [b"", b"/etc/x", b"../x", b"a/../../x", b"a//b", b"./a", b"a/", b"..", b".", b"ok/way"]
                ),
            ),
            st.sampled_from([b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"]),
            st.binary(max_size=600),
            st.sampled_from([b"/etc", b"..", b"x" * 300]),
        ),
        max_size=6,
    )
)
def test_hostile_names_and_kinds_write_nothing_outside(members: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
    whole = [(name, kind, content if kind == b"0" else b"", target) for name, kind, content, target in members]
    with scratch() as folder:
        output = folder + b"/output"
        _, unpacker = unpacked(raw_stream(whole), output)
        assert os.listdir(folder) == [b"output"]
        for path in read_tree(output):
            assert not os.path.islink(output + b"/" + path)
        assert unpacker.files + unpacker.refused.count == len(whole)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        (b"/etc/passwd", b"0", "an absolute path"),
        (b"a/../../b", b"0", "a path with .."),
        (b"", b"0", "an empty name"),
        (b"link", b"2", "a symbolic link"),
        (b"hard", b"1", "a hard link"),
        (b"tty", b"3", "a character device"),
        (b"disk", b"4", "a block device"),
        (b"pipe", b"6", "a fifo"),
        (b"folder", b"5", "a directory"),
    ],
)
def test_what_is_refused_is_named_and_the_others_come(tmp_path: Path, name: bytes, kind: bytes, why: str) -> None:
    stream = raw_stream([(name, kind, b"", b"target"), (b"good", b"0", b"fine", b"")])
    _, unpacker = unpacked(stream, tmp_path / "output")
    assert unpacker.refused.items == [[name.decode(), why]]
    assert read_tree(os.fsencode(tmp_path / "output")) == {b"good": b"fine"}


def test_a_local_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    output, outside = tmp_path / "output", tmp_path / "outside"
    for folder in (output / "inside", outside):
        folder.mkdir(parents=True)
    (output / "out").symlink_to(outside)
    (output / "in").symlink_to("inside")
    (output / "file").symlink_to(outside / "file")
    names = (b"out/x", b"out/deep/x", b"in/x", b"file")
    _, unpacker = unpacked(raw_stream([(name, b"0", b"data", b"") for name in names]), output)
    assert [name for name, _ in unpacker.refused.items] == ["out/x", "out/deep/x"]
    assert list(outside.iterdir()) == []
    assert (output / "inside" / "x").read_bytes() == b"data"
    assert not (output / "file").is_symlink()  # the link was replaced, not followed


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    members = [(name, b"0", b"new", b"") for name in (b"folder", b"file/below", b"x" * 300, b"good")]
    _, unpacker = unpacked(raw_stream(members), tmp_path)
    assert sorted(name[:10] for name, _ in unpacker.refused.items) == ["file/below", "folder", "x" * 10]
    assert (tmp_path / "good").read_bytes() == b"new"
    assert (tmp_path / "file").read_bytes() == b"old"


def test_tar_lists_the_stream(tmp_path: Path) -> None:
    tree = {b"a": b"1" * 600, b"b/" + b"n" * 100: b"", b"b/" + b"n" * 101: b"x", b"new\nline\xff": b"y"}
    write_tree(os.fsencode(tmp_path), tree)
    stream = packed(tmp_path)
    listed = subprocess.run(
        [require("tar"), "tf", "-", "--quoting-style=literal"], input=stream, capture_output=True, check=True
    )
    assert listed.stderr == b""
    for name in tree:
        assert name in listed.stdout
    with tarfile.open(fileobj=io.BytesIO(stream), encoding="utf-8", errors="surrogateescape") as archive:
        assert {os.fsencode(name) for name in archive.getnames()} >= set(tree)


def test_a_size_beyond_octal_survives() -> None:
    block = tarstream.header(b"huge", b"0", size=9 << 30, mode=0o644)
    assert tarstream._parse(block)[2] == 9 << 30
    assert tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size == 9 << 30


GLOB_TREE = (
    *("top.txt", "top.json", ".hidden", "out/a.json", "out/.b.json", "out/deep/c.json", "out/deep/.d", ".cache/e.json"),
    "out/.secret/f.json",
)


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("top.*", {"top.txt", "top.json"}),
        ("*.json", {"top.json"}),
        ("**/*.json", {"top.json", "out/a.json", "out/deep/c.json"}),
        ("out", {"out/a.json", "out/.b.json", "out/deep/c.json", "out/deep/.d", "out/.secret/f.json"}),
        ("./out//", {"out/a.json", "out/.b.json", "out/deep/c.json", "out/deep/.d", "out/.secret/f.json"}),
        ("out/*", {"out/a.json", "out/deep/c.json", "out/deep/.d"}),
        ("out/**", {"out/a.json", "out/deep/c.json", "out/deep/.d"}),
        ("out/**/deep/*.json", {"out/deep/c.json"}),
        ("o?t/[ab].json", {"out/a.json"}),
        (".hidden", {".hidden"}),
        (".h*", {".hidden"}),
        (".cache/*.json", {".cache/e.json"}),
        ("out/.*.json", {"out/.b.json"}),
        (".", set(GLOB_TREE)),
        ("nothing*", set()),
        ("top.txt/x", set()),
    ],
)
def test_globs(tmp_path: Path, glob: str, names: set[str]) -> None:
    source = tmp_path / "source"
    write_tree(os.fsencode(source), {name.encode(): name.encode() for name in GLOB_TREE})
    report, _ = unpacked(packed(source, (glob,)), tmp_path / "output")
    assert {os.fsdecode(name) for name in read_tree(os.fsencode(tmp_path / "output"))} == names
    assert report["unmatched"] == ([] if names else [glob])


def test_globs_that_overlap_send_a_file_once(tmp_path: Path) -> None:
    write_tree(os.fsencode(tmp_path), {b"a/b": b"x"})
    out = io.BytesIO()
    packer = Packer(out.write, NONCE)
    tarstream.pack(os.fsencode(tmp_path), ["a", "a/b", "**/b"], {}, packer)
    assert packer.files == 1


def test_a_missing_root_matches_nothing(tmp_path: Path) -> None:
    report, _ = unpacked(packed(tmp_path / "missing", ("*",)), tmp_path / "output")
    assert (report["unmatched"], report["unreadable_count"]) == (["*"], 0)


@pytest.mark.parametrize("glob", ["/etc/*", "../x", "a/../b", "", "a\0b"])
def test_globs_that_lead_out_are_refused(glob: str) -> None:
    assert tarstream.glob_refusal(glob)


def test_links_lead_to_content_and_special_files_are_never_opened(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "real").mkdir(parents=True)
    (source / "real" / "file").write_bytes(b"content")
    (source / "link").symlink_to("real/file")
    (source / "dangling").symlink_to("nowhere")
    (source / "self").symlink_to("self")
    (source / "up").symlink_to("..")
    (source / "null").symlink_to("/dev/null")
    os.mkfifo(source / "fifo")
    report, _ = unpacked(packed(source), tmp_path / "output")
    assert read_tree(os.fsencode(tmp_path / "output")) == {b"link": b"content", b"real/file": b"content"}
    assert dict(report["skipped"]) == {
        "dangling": "a link that leads nowhere",
        "self": "a loop of links",
        "up": "a link to a directory",
        "null": "a character device",
        "fifo": "a fifo",
    }


def test_what_is_known_is_left_out_until_it_changes(tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"1")
    infos = {name: (tmp_path / name).stat() for name in ("same", "other")}
    known = {name: [info.st_size, info.st_mtime_ns] for name, info in infos.items()}
    (tmp_path / "other").write_bytes(b"22")
    report, unpacker = unpacked(packed(tmp_path, ("*",), known), tmp_path / "output")
    assert (report["unchanged"], unpacker.files) == (1, 1)
    assert (tmp_path / "output" / "other").read_bytes() == b"22"


class Growing:
    """Lets a file change at the moment its first bytes go out."""

    def __init__(self, path: Path, size: int) -> None:
        self.out = bytearray()
        self._path = path
        self._size = size

    def write(self, data: bytes) -> None:
        if not self.out:
            os.truncate(self._path, self._size)
        self.out += data


@pytest.mark.parametrize("size", [3 << 20, 100])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, size: int) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    (source / "file").write_bytes(b"x" * (2 << 20))
    sink = Growing(source / "file", size)
    tarstream.pack(os.fsencode(source), ["*"], {}, Packer(sink.write, NONCE))
    output.mkdir()
    (output / "file").write_bytes(b"last good")
    _, unpacker = unpacked(bytes(sink.out), output, take_changed=False)
    assert unpacker.changed.items[0][0] == "file"
    assert (output / "file").read_bytes() == b"last good"
    unpacked(bytes(sink.out), output, take_changed=True)
    assert set((output / "file").read_bytes()) == {ord("x")}  # no padding in it


def test_a_batch_is_in_place_before_the_next_one_comes(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    count = tarstream.BATCH_FILES * 2 + 10
    write_tree(os.fsencode(source), {b"%04d" % number: b"x" for number in range(count)})
    stream = packed(source)
    with pytest.raises(TruncatedError):
        unpacked(stream[: len(stream) * 3 // 4], output)
    assert len(read_tree(os.fsencode(output))) == tarstream.BATCH_FILES
    assert len(list(output.iterdir())) == tarstream.BATCH_FILES


def test_what_a_killed_transfer_left_is_removed_and_what_is_in_use_stays(tmp_path: Path) -> None:
    stale = tmp_path / ".gpu-runner-incoming-stale"
    stale.mkdir()
    (stale / "1").write_bytes(b"x")
    with tarstream._incoming(os.fsencode(tmp_path)) as in_use:
        assert not stale.exists()
        unpacked(raw_stream([(b"a", b"0", b"x", b"")]), tmp_path)
        assert Path(os.fsdecode(in_use)).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file" / "output"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError) as caught:
        unpacked(raw_stream([(b"a", b"0", b"x", b"")]), blocked)
    assert caught.value.path == str(blocked)


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(WriteError) as caught:
            unpacked(raw_stream([(b"fits", b"0", b"x", b""), (b"sub/big", b"0", b"x" * (2 << 20), b"")]), small)
        assert (caught.value.errno, caught.value.path) == (errno.ENOSPC, str(small / "sub" / "big"))
        assert not [path for path in small.iterdir() if path.name.startswith(".gpu-runner")]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def run_program(
    python: str, verb: str, request: dict[str, Any], stream: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    digest = hashlib.sha256(PROGRAM.read_bytes()).hexdigest()
    line = json.dumps(request).encode() + b"\n"
    return subprocess.run(
        [python, "-I", "-S", str(PROGRAM), verb, digest],
        input=line + stream,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_both_sides_work_on_the_oldest_python(tmp_path: Path) -> None:
    python = find_python("3.8")
    tree = {b"a\n\xff": b"1", b"d/" + b"n" * 120: b"2" * 100_000, b"empty": b""}
    write_tree(os.fsencode(tmp_path / "source"), tree)
    request = {"folder": str(tmp_path / "source"), "globs": ["*"], "known": {}, "nonce": NONCE}
    sent = run_program(python, "pack", request)
    assert (sent.returncode, sent.stderr) == (0, b"")
    unpacked(sent.stdout, tmp_path / "here")
    assert read_tree(os.fsencode(tmp_path / "here")) == tree
    done = run_program(python, "unpack", {"folder": str(tmp_path / "there"), "nonce": NONCE}, sent.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.splitlines()[-1]) == {"end": True, "refused": [], "refused_count": 0}
    assert read_tree(os.fsencode(tmp_path / "there")) == tree


def test_the_machine_tells_what_arrived_damaged(tmp_path: Path) -> None:
    python = find_python("3.8")
    stream = raw_stream([(b"bad", b"0", b"bad content", b""), (b"good", b"0", b"good content", b"")])
    broken = stream.replace(b"bad content", b"bad conTent")
    done = run_program(python, "unpack", {"folder": str(tmp_path / "there"), "nonce": NONCE}, broken)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (answers[0]["names"], answers[0]["failed"]) == (["good"], ["bad"])
    assert read_tree(os.fsencode(tmp_path / "there")) == {b"good": b"good content"}


def test_another_version_of_the_program_does_nothing() -> None:
    done = subprocess.run(
        [find_python("3.8"), str(PROGRAM), "pack", "0" * 64],
        input=b"{}\n",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == tarstream.STALE_STATUS


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=9), max_leaves=12
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(json_values, max_size=9) | json_values, min_size=1, max_size=1), json_values)
def test_a_manifest_of_nonsense_is_a_typed_error(entries: list[Any], end: Any) -> None:
    """Whoever has root on the machine can write any manifest."""
    out = io.BytesIO()
    packer = Packer(out.write, NONCE)
    packer._out_frame(tarstream.header(b"a", b"0", mode=0o644))
    packer._batch = entries
    packer._manifest({"it": end})
    with scratch() as output, pytest.raises((CorruptError, TruncatedError)):
        unpacked(out.getvalue(), output)


@pytest.mark.parametrize(
    "change", [{"mtime_ns": 1 << 70}, {"mtime_ns": "x"}, {"got": []}, {"name": "../other"}, {"mode": None}]
)
def test_a_manifest_that_lies_about_a_file_does_not_bring_it(tmp_path: Path, change: dict[str, Any]) -> None:
    out = io.BytesIO()
    packer = Packer(out.write, NONCE)
    packer._out_frame(tarstream.header(b"a", b"0", mode=0o644))
    entry = tarstream.Entry("a", "0", 0, 0, 0o644, hashlib.sha256().hexdigest())._replace(**change)
    packer._batch = [entry]
    packer.finish({})
    with pytest.raises(CorruptError):
        unpacked(out.getvalue(), tmp_path)
    assert list(tmp_path.iterdir()) == []
