"""Files as a tar stream that proves itself: packed and unpacked on both sides of a connection.

The stream is a plain GNU tar (``tar tv`` reads it) with a manifest member after every few files: sizes, times, modes
and SHA-256 of the members since the last one, and a hash over their headers. A batch counts once its manifest agrees;
the last manifest says that it is the last, so a stream that was cut is told from one that ended. The name of the
manifests holds a nonce of the receiver, so no file can pose as one.

This file needs nothing but Python 3.8: the controller imports it, and its text is put on the machine, where it runs as
``python3 tarstream.py pack|unpack`` with one line of JSON on its input. Names are bytes, and in JSON they are UTF-8
with surrogate escapes.
"""

# Names are bytes here, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH111, PTH112, PTH114, PTH115, PTH116, PTH123, PTH208, PTH211

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Folders = list[tuple[bytes, tuple[str, ...]]]

BLOCK = 512
CHUNK_BYTES = 256 << 10
SMALL_BYTES = 64 << 10
_INPUT_BYTES = 64 << 10  # from 128 KiB on, malloc fetches each buffer from the system anew, page by page
BATCH_FILES = 256
BATCH_BYTES = 8 << 20
LISTED = 1000
_LISTED_BYTES = 1 << 20
_FIELD_BYTES = 100
_MAX_NAME_BYTES = 64 << 10
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_REQUEST_BYTES = 1 << 30
STALE_STATUS = 9
_SETTLE_NS = 50_000_000
_INCOMING = b".gpu-runner-incoming-"
_MANIFEST = b".gpu-runner-manifest-"
_LONG = b"././@LongLink"
_FILE, _LINK, _DIR, _LONG_NAME, _LONG_LINK = b"0", b"2", b"5", b"L", b"K"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a fifo",
    b"7": "a contiguous file",
}
_HEAD = struct.Struct("100s8s8s8s12s12s8s1s100s8s247x")
_NOBODY = b"0000000\0"
_MAX_MTIME_S = 8**11 - 1
_ZEROS = bytes(BLOCK)
_DROPPED = -1
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG}
_MISFITS = {
    errno.EISDIR: "a directory of this name is in the way",
    errno.ENOTEMPTY: "a directory of this name is in the way",
    errno.EEXIST: "something else of this name is in the way",
    errno.ENOTDIR: "a file is in the way of its folder",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EINVAL: "the file system does not take the name",
    errno.EILSEQ: "the file system does not take the name",
    errno.ELOOP: "a loop of links is in the way of its folder",
}


class StreamError(Exception):
    """Something is wrong with a stream, or with writing what it holds."""


class TruncatedError(StreamError):
    """The stream ended before its end."""


class CorruptError(StreamError):
    """The stream is not what was sent."""


class WriteError(StreamError):
    """A file cannot be written: disk full, no permission, read-only.

    Args:
        path: Where.
        error: Why.
    """

    def __init__(self, path: bytes, error: OSError) -> None:
        self.path = text_of(path)
        self.errno = error.errno
        self.reason = error.strerror or str(error)
        super().__init__(f"cannot write {printable(self.path)}: {self.reason}")


class Entry(NamedTuple):
    """One member, as its manifest tells of it.

    Attributes:
        name: Path relative to the root of the stream.
        kind: ``0`` a file, ``2`` a symbolic link, ``5`` a directory.
        size: Bytes.
        mtime_ns: Time of the last change.
        mode: Permission bits.
        sha256: Of the content; of the target for a link.
        got: None; for a file that changed while it was read, how many of the bytes are its own, and less than 0 when
            reading failed.
        settled: Whether a later change is sure to show in the time of the last change.
    """

    name: str
    kind: str
    size: int
    mtime_ns: int
    mode: int
    sha256: str
    got: int | None = None
    settled: bool = True


class Capped:
    """A list for a report: the first many items, and how many there were."""

    def __init__(self) -> None:
        self.items: list[list[str]] = []
        self.count = 0
        self._room = _LISTED_BYTES

    def add(self, name: bytes, reason: str) -> None:
        """Note a name and what there is to say of it."""
        self.count += 1
        if len(self.items) < LISTED and self._room > 0:
            self._room -= len(name)
            self.items.append([text_of(name), reason])


def text_of(raw: bytes) -> str:
    """A name as text; every byte survives."""
    return raw.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """The bytes of a name that ``text_of`` made."""
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """A name on one line, for people."""
    return text if text.isprintable() else ascii(text)[1:-1]


def refusal(name: bytes) -> str | None:
    """Why a name may not be written below a folder; None when it may."""
    if not name:
        return "an empty name"
    if name.startswith(b"/"):
        return "an absolute path"
    parts = name.split(b"/")
    if b".." in parts:
        return "a path with .."
    if b"" in parts or b"." in parts:
        return "not a plain path"
    return None


def glob_refusal(glob: str) -> str | None:
    """Why a glob cannot name files below a root; None when it can."""
    if not glob or "\0" in glob:
        return "not a glob"
    if glob.startswith("/"):
        return "an absolute path"
    return "a path with .." if ".." in glob.split("/") else None


def header(name: bytes, kind: bytes, *, size: int = 0, mode: int, mtime_s: int = 0, target: bytes = b"") -> bytes:
    """The header blocks of one member: more than one where a name is longer than its field."""
    before = b""
    for mark, long in ((_LONG_LINK, target), (_LONG_NAME, name)):
        if len(long) > _FIELD_BYTES:
            before += header(_LONG, mark, size=len(long) + 1, mode=0o644) + long + bytes(1 + -(len(long) + 1) % BLOCK)
    # What octal has no room for is written in base 256, as GNU tar does.
    size_field = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    mtime_field = b"%011o\0" % min(max(mtime_s, 0), _MAX_MTIME_S)  # the exact time stands in the manifest
    fields = (name[:_FIELD_BYTES], b"%07o\0" % mode, _NOBODY, _NOBODY, size_field, mtime_field, b" " * 8, kind)
    block = _HEAD.pack(*fields, target[:_FIELD_BYTES], b"ustar  \0")
    return before + block[:148] + b"%06o\0 " % sum(block) + block[156:]


class Packer:
    """Writes a stream.

    Args:
        write: Takes all of the bytes that it is given.
        nonce: Of the receiver.
    """

    def __init__(self, write: Callable[[bytes], object], nonce: str) -> None:
        self._write = write
        self._prefix = _MANIFEST + nonce.encode("ascii")
        self._parts: list[bytes] = []
        self._pending = 0
        self._batch: list[Entry] = []
        self._batch_bytes = 0
        self._batches = 0
        self._frame = hashlib.sha256()
        self.files = 0
        self.bytes = 0
        self.skipped = Capped()
        self.unreadable = Capped()

    def add_file(self, path: bytes, name: bytes, *, is_file: bool = False) -> None:
        """Pack a regular file, or the one that a link leads to; anything else is reported and never opened.

        Args:
            path: Where it is.
            name: Its name in the stream.
            is_file: Whether it is known to be a regular file.
        """
        try:
            if not is_file:
                mode = os.stat(path).st_mode
                if not stat.S_ISREG(mode):
                    self.skipped.add(name, _what_is(mode))
                    return
            # Should a fifo have taken its place by now, opening it does not wait.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            self.fail(path, name, error)
            return
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode):
                self._add_open(fd, name, info)
            else:
                self.skipped.add(name, _what_is(info.st_mode))
        finally:
            os.close(fd)

    def add_link(self, path: bytes, name: bytes) -> None:
        """Pack a symbolic link as one."""
        try:
            info, target = os.lstat(path), os.readlink(path)
        except OSError as error:
            self.fail(path, name, error)
            return
        self._out_frame(header(name, _LINK, mode=0o777, mtime_s=int(info.st_mtime), target=target))
        self._close(Entry(text_of(name), "2", 0, info.st_mtime_ns, 0o777, hashlib.sha256(target).hexdigest()))

    def add_dir(self, path: bytes, name: bytes) -> None:
        """Pack a directory, without what is in it."""
        try:
            info = os.lstat(path)
        except OSError as error:
            self.fail(path, name, error)
            return
        mode = stat.S_IMODE(info.st_mode)
        self._out_frame(header(name, _DIR, mode=mode, mtime_s=int(info.st_mtime)))
        self._close(Entry(text_of(name), "5", 0, info.st_mtime_ns, mode, ""))

    def fail(self, path: bytes, name: bytes, error: OSError) -> None:
        """Report a name that cannot be read."""
        if error.errno == errno.ELOOP:
            self.skipped.add(name, "a loop of links")
        elif error.errno in {errno.ENOENT, errno.ENOTDIR}:
            self.skipped.add(name, "a link that leads nowhere" if os.path.islink(path) else "it vanished")
        elif error.errno in _UNREADABLE:
            self.unreadable.add(name, error.strerror or str(error))
        else:
            raise error

    def finish(self, report: dict[str, Any]) -> None:
        """Write the last manifest, with a report to the receiver, and the end of the archive."""
        report.update(files=self.files, bytes=self.bytes)
        report.update(skipped=self.skipped.items, skipped_count=self.skipped.count)
        report.update(unreadable=self.unreadable.items, unreadable_count=self.unreadable.count)
        self._manifest(report)
        self._out(_ZEROS + _ZEROS)
        self._flush()

    def _add_open(self, fd: int, name: bytes, info: os.stat_result) -> None:
        size = info.st_size
        mode = stat.S_IMODE(info.st_mode)
        self._out_frame(header(name, _FILE, size=size, mode=mode, mtime_s=int(info.st_mtime)))
        digest, got = self._content(fd, size)
        if size % BLOCK:
            self._out_frame(bytes(-size % BLOCK))
        after = os.fstat(fd)
        same = got == size and after.st_size == size and after.st_mtime_ns == info.st_mtime_ns
        settled = abs(time.time_ns() - info.st_mtime_ns) > _SETTLE_NS
        self.files += 1
        self.bytes += size
        self._close(
            Entry(text_of(name), "0", size, info.st_mtime_ns, mode, digest, None if same else got, settled), size
        )

    def _content(self, fd: int, size: int) -> tuple[str, int]:
        """Send so many bytes of an open file, zeros where it has become shorter; their hash and their number."""
        digest = hashlib.sha256()
        left = size
        got = 0
        ended = failed = False
        while left:
            want = min(CHUNK_BYTES, left)
            try:
                data = b"" if ended else os.read(fd, want)
            except OSError:
                data, failed = b"", True
            got += len(data)
            if not data:
                ended = True
                data = bytes(want)
            digest.update(data)
            self._out(data)
            left -= len(data)
        return digest.hexdigest(), _DROPPED if failed else got

    def _close(self, entry: Entry, size: int = 0) -> None:
        self._batch.append(entry)
        self._batch_bytes += size
        if len(self._batch) >= BATCH_FILES or self._batch_bytes >= BATCH_BYTES:
            self._manifest(None)

    def _manifest(self, report: dict[str, Any] | None) -> None:
        told = {"batch": self._batches, "frame": self._frame.hexdigest(), "entries": self._batch, "end": report}
        text = json.dumps(told, separators=(",", ":")).encode("ascii")
        body = hashlib.sha256(text).hexdigest().encode("ascii") + text
        self._out(header(self._prefix + b"-%d" % self._batches, _FILE, size=len(body), mode=0o600))
        self._out(body + bytes(-len(body) % BLOCK))
        self._flush()  # what is complete goes out at once: it may be the last that arrives
        self._batches += 1
        self._batch = []
        self._batch_bytes = 0
        self._frame = hashlib.sha256()

    def _out_frame(self, data: bytes) -> None:
        self._frame.update(data)
        self._out(data)

    def _out(self, data: bytes) -> None:
        self._parts.append(data)
        self._pending += len(data)
        if self._pending >= CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._pending = self._parts, [], 0
            self._write(parts[0] if len(parts) == 1 else b"".join(parts))


def _what_is(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a link to a directory"
    kinds = ((stat.S_ISFIFO, "a fifo"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a character device"))
    return next((text for test, text in kinds if test(mode)), "a block device")


def select(root: bytes, glob: str, packer: Packer) -> Iterator[tuple[bytes, bool]]:
    """Walk to what a glob names.

    ``*``, ``?`` and ``[...]`` stay within one name and leave out hidden ones, ``**`` stands for any folders that are
    not hidden, and a directory that the glob names is taken with everything below it.

    Args:
        root: Where the glob starts.
        glob: One that ``glob_refusal`` lets pass.
        packer: Told what cannot be read.

    Yields:
        Names relative to the root, and whether that is known to be a regular file.
    """
    first = tuple(part for part in glob.split("/") if part not in {"", "."})
    stack: _Folders = [(b"", first)]
    while stack:
        folder, parts = stack.pop()
        folders: _Folders = []
        if not parts:
            yield from _below(root, folder, packer, folders)
        elif parts[0] == "**":
            rest = parts[1:] or ("*",)
            if parts[1:]:
                found = _scan(root, folder, packer)
                plain = (e for e in found if e.is_dir(follow_symlinks=False) and not e.name.startswith(b"."))
                folders = [(_join(folder, entry.name), parts) for entry in plain]
            folders.insert(0, (folder, rest))
        elif re.search(r"[*?\[]", parts[0]):
            yield from _matching(root, folder, parts, packer, folders)
        else:
            name = _join(folder, bytes_of(parts[0]))
            if os.path.isdir(_join(root, name)):
                folders = [(name, parts[1:])]
            elif not parts[1:] and os.path.lexists(_join(root, name)):
                yield name, False
        stack.extend(reversed(folders))


def _below(root: bytes, folder: bytes, packer: Packer, folders: _Folders) -> Iterator[tuple[bytes, bool]]:
    for entry in _scan(root, folder, packer):
        name = _join(folder, entry.name)
        if entry.is_dir(follow_symlinks=False):
            folders.append((name, ()))
        else:
            yield name, entry.is_file(follow_symlinks=False)


def _matching(
    root: bytes, folder: bytes, parts: tuple[str, ...], packer: Packer, folders: _Folders
) -> Iterator[tuple[bytes, bool]]:
    wanted = re.compile(fnmatch.translate(parts[0]))
    for entry in _scan(root, folder, packer):
        hidden = entry.name.startswith(b".") and not parts[0].startswith(".")
        if hidden or not wanted.match(text_of(entry.name)):
            continue
        name = _join(folder, entry.name)
        if entry.is_dir(follow_symlinks=len(parts) > 1):
            folders.append((name, parts[1:]))
        elif len(parts) == 1:
            yield name, entry.is_file(follow_symlinks=False)


def _scan(root: bytes, folder: bytes, packer: Packer) -> list[os.DirEntry[bytes]]:
    path = _join(root, folder)
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if folder or error.errno != errno.ENOENT:  # no root at all: every glob matches nothing
            packer.fail(path, folder or b".", error)
        return []


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder and name else folder or name


def pack(root: bytes, globs: list[str], known: dict[str, list[int]], packer: Packer) -> None:
    """Pack what globs name and the receiver does not have.

    Args:
        root: Where the globs start.
        globs: What is wanted.
        known: Size and time of the last change, in ns, of what the receiver has.
        packer: Where it goes.
    """
    seen: set[bytes] = set()
    unmatched: list[str] = []
    unchanged = 0
    for glob in globs:
        matched = False
        for name, is_file in select(root, glob, packer):
            matched = True
            if name in seen:
                continue
            seen.add(name)
            path = _join(root, name)
            have = known.get(text_of(name)) if known else None
            if have is not None and _unchanged(path, have):
                unchanged += 1
            else:
                packer.add_file(path, name, is_file=is_file)
        if not matched:
            unmatched.append(glob)
    packer.finish({"unmatched": unmatched, "unchanged": unchanged})


def _unchanged(path: bytes, have: list[int]) -> bool:
    try:
        info = os.stat(path)
    except OSError:
        return False  # packing it tells why
    return [info.st_size, info.st_mtime_ns] == have


class Source:
    """What is read from a stream, in the pieces that are asked for.

    Args:
        read: Some bytes, at most so many; nothing at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """Exactly so many bytes."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Exactly so many bytes, as they come."""
        while size:
            if self._at == len(self._buffer):
                self._fill()
            piece = memoryview(self._buffer)[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def line(self, limit: int) -> bytes:
        """Everything up to the next line feed."""
        line = b""
        while len(line) < limit:
            if self._at == len(self._buffer):
                self._fill()
            end = self._buffer.find(b"\n", self._at)
            line += self._buffer[self._at : end if end >= 0 else None]
            self._at = end + 1 if end >= 0 else len(self._buffer)
            if end >= 0:
                return line
        raise CorruptError("a line without end")

    def _fill(self) -> None:
        self._buffer = self._read(CHUNK_BYTES)
        self._at = 0
        if not self._buffer:
            raise TruncatedError("the stream ended too early")


class _Member(NamedTuple):
    """One member as it came, before its manifest."""

    name: bytes
    kind: bytes
    size: int
    sha256: str
    temp: bytes | None
    target: bytes


class Unpacker:
    """Reads a stream and writes what it holds below a folder: verified first, then renamed into place.

    Args:
        source: The stream.
        folder: Where to; made when missing.
        nonce: What the sender was told.
        links: Whether links and directories are made too; otherwise they are refused.
        take_changed: Whether a file that changed while it was read is kept; otherwise the last good one stays.
        on_batch: Told, after each batch, what is in place and the names of what was not as sent.
    """

    def __init__(
        self,
        source: Source,
        folder: bytes,
        nonce: str,
        *,
        links: bool = False,
        take_changed: bool = True,
        on_batch: Callable[[list[Entry], list[str]], object] | None = None,
    ) -> None:
        self._source = source
        self._folder = folder
        self._prefix = _MANIFEST + nonce.encode("ascii")
        self._links = links
        self._take_changed = take_changed
        self._on_batch = on_batch
        self._members: list[_Member] = []
        self._batches = 0
        self._temps = 0
        self._incoming = b""
        self._real = b""
        self._parents: dict[bytes, str | None] = {}
        self._frame = hashlib.sha256()
        self.files = 0
        self.bytes = 0
        self.refused = Capped()
        self.changed = Capped()

    def run(self) -> dict[str, Any]:
        """Read the whole stream.

        Returns:
            The sender's report.

        Raises:
            TruncatedError: It ended too early.
            CorruptError: Its frame is broken. A member with another content is only told to ``on_batch``.
            WriteError: A file cannot be written. Whatever error: what was verified before is in place.
        """
        try:
            os.makedirs(self._folder, exist_ok=True)
        except OSError as error:
            raise WriteError(self._folder, error) from error
        self._real = os.path.realpath(self._folder)
        with _incoming(self._folder) as self._incoming:
            report = None
            while report is None:
                report = self._next()
            if self._source.take(2 * BLOCK) != _ZEROS + _ZEROS:
                raise CorruptError("the archive does not end where it says")
        return report

    def _next(self) -> dict[str, Any] | None:
        """One member; the sender's report if that was the last manifest."""
        name, target = None, b""
        while True:
            block = self._source.take(BLOCK)
            short, kind, size, mode, short_target = _parse(block)
            if kind not in {_LONG_NAME, _LONG_LINK}:
                break
            if not 0 < size <= _MAX_NAME_BYTES:
                raise CorruptError("a name of impossible length")
            padded = self._source.take(size + -size % BLOCK)
            self._frame.update(block + padded)
            if kind == _LONG_NAME:
                name = padded[: size - 1]
            else:
                target = padded[: size - 1]
        name = short if name is None else name
        if kind == _FILE and name.startswith(self._prefix):
            return self._manifest(block, name, size)
        self._frame.update(block)
        self._member(name, kind, size, mode, target or short_target)
        return None

    def _member(self, name: bytes, kind: bytes, size: int, mode: int, target: bytes) -> None:
        if kind != _FILE and (size or kind not in _KINDS):
            raise CorruptError("a member of impossible kind")
        why = refusal(name) or self._kind_refusal(kind) or self._folder_refusal(name)
        temp = None
        if why:
            self.refused.add(name, why)
        elif kind != _DIR:
            self._temps += 1
            temp = self._incoming + b"/%d" % self._temps
        digest = hashlib.sha256(target if kind == _LINK else b"")
        if kind == _FILE:
            try:
                self._content(digest, size, mode, temp)
            except OSError as error:
                raise WriteError(_join(self._folder, name), error) from error
            if size % BLOCK:
                self._frame.update(self._source.take(-size % BLOCK))
        sha256 = "" if kind == _DIR else digest.hexdigest()
        self._members.append(_Member(b"" if why else name, kind, size, sha256, temp, target))
        if len(self._members) > BATCH_FILES:
            raise CorruptError("a manifest is missing")

    def _kind_refusal(self, kind: bytes) -> str | None:
        return None if kind == _FILE or (self._links and kind in {_LINK, _DIR}) else _KINDS[kind]

    def _content(self, digest: Any, size: int, mode: int, temp: bytes | None) -> None:
        """Read the content of a file, hash it, and write it unless it is refused."""
        if temp is None:
            for piece in self._source.pieces(size):
                digest.update(piece)
            return
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o777)
        try:
            if size <= SMALL_BYTES:
                data = self._source.take(size)
                digest.update(data)
                _write_all(fd, data)
                return
            for piece in self._source.pieces(size):
                digest.update(piece)
                _write_all(fd, piece)
        finally:
            os.close(fd)

    def _manifest(self, block: bytes, name: bytes, size: int) -> dict[str, Any] | None:
        if not hashlib.sha256().digest_size * 2 < size <= _MAX_MANIFEST_BYTES:
            raise CorruptError("a manifest of impossible size")
        padded = self._source.take(size + -size % BLOCK)
        digest, text = padded[:64], padded[64:size]
        whole = name == self._prefix + b"-%d" % self._batches and block == header(name, _FILE, size=size, mode=0o600)
        if not whole or padded[size:].strip(b"\0") or hashlib.sha256(text).hexdigest().encode("ascii") != digest:
            raise CorruptError("a manifest is damaged")
        try:
            told = json.loads(text.decode("ascii"))
            entries = [_checked(Entry(*entry)) for entry in told["entries"]]
            frame, end = told["frame"], told["end"]
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError("a manifest makes no sense") from error
        if frame != self._frame.hexdigest() or len(entries) != len(self._members):
            raise CorruptError("the headers are damaged")
        self._commit_batch(entries)
        self._batches += 1
        return end if end is None or isinstance(end, dict) else {}

    def _commit_batch(self, entries: list[Entry]) -> None:
        done: list[Entry] = []
        failed: list[str] = []
        for index, entry in enumerate(entries):
            member = self._members[index]
            if not member.name:
                continue
            came = (text_of(member.name), text_of(member.kind), member.size, member.sha256)
            if (entry.name, entry.kind, entry.size, entry.sha256) != came:
                failed.append(text_of(member.name))
                self._forget(member)
            elif self._wanted(member, entry) and self._commit(member, entry):
                done.append(entry)
                self.files += 1
                self.bytes += entry.size
        self._members = []
        self._frame = hashlib.sha256()
        if self._on_batch is not None:
            self._on_batch(done, failed)

    def _wanted(self, member: _Member, entry: Entry) -> bool:
        if entry.got is None:
            return True
        keep = self._take_changed and entry.got >= 0
        self.changed.add(member.name, "changed while it was read" if entry.got >= 0 else "could not be read to its end")
        if not keep:
            self._forget(member)
        return keep

    def _forget(self, member: _Member) -> None:
        if member.temp is not None and member.kind == _FILE:
            os.unlink(member.temp)

    def _commit(self, member: _Member, entry: Entry) -> bool:
        path = _join(self._folder, member.name)
        try:
            if member.kind == _DIR:
                self._make_dir(path, entry.mode)
                return True
            temp = member.temp or b""
            if member.kind == _LINK:
                os.symlink(member.target, temp)
                self._parents.clear()  # it may stand where a folder was expected
            elif entry.got is not None and entry.got < entry.size:
                _shorten(temp, entry)
            os.utime(temp, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
            os.rename(temp, path)
        except OSError as error:
            if error.errno not in _MISFITS:
                raise WriteError(path, error) from error
            self.refused.add(member.name, _MISFITS[error.errno])
            return False
        return True

    @staticmethod
    def _make_dir(path: bytes, mode: int) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode & 0o777)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _folder_refusal(self, name: bytes) -> str | None:
        """Make the folder of a name; why it cannot be its folder, or None."""
        parent = name.rpartition(b"/")[0]
        if not parent or parent in self._parents:
            return self._parents.get(parent)
        why = self._folder_refusal(parent) or self._enter(_join(self._folder, parent))
        self._parents[parent] = why
        return why

    def _enter(self, path: bytes) -> str | None:
        """Make a folder whose parent is safe; None when it is one that lies within ours."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.islink(path):
                return None if os.path.isdir(path) else _MISFITS[errno.ENOTDIR]
        except OSError as error:
            if error.errno not in _MISFITS:
                raise WriteError(path, error) from error
            return _MISFITS[error.errno]
        else:
            return None
        if not os.path.isdir(path):
            return "a link is in the way of its folder"
        inside = os.path.realpath(path).startswith(self._real.rstrip(b"/") + b"/")
        return None if inside else "a link here leads its folder elsewhere"


def _checked(entry: Entry) -> Entry:
    """The entry, if its numbers are some that a file can have; the rest is compared with what came."""
    numbers: tuple[object, ...] = (entry.mtime_ns, entry.mode, 0 if entry.got is None else entry.got)
    if not all(isinstance(number, int) and abs(number) < 1 << 63 for number in numbers):
        raise ValueError("not the numbers of a file")
    return entry


def _shorten(path: bytes, entry: Entry) -> None:
    os.chmod(path, 0o600)
    os.truncate(path, entry.got or 0)
    os.chmod(path, entry.mode & 0o777)


def _parse(block: bytes) -> tuple[bytes, bytes, int, int, bytes]:
    """Name, kind, size, mode and target of a header block."""
    try:
        if sum(block) - sum(block[148:156]) + 8 * 32 != int(block[148:154], 8):
            raise CorruptError("a header is damaged")
        size = int.from_bytes(block[125:136], "big") if block[124] == 0x80 else int(block[124:135], 8)  # noqa: PLR2004
        mode = int(block[100:107], 8)
    except ValueError as error:
        raise CorruptError("a header makes no sense") from error
    name = block[:_FIELD_BYTES].partition(b"\0")[0]
    return name, block[156:157], size, mode, block[157:257].partition(b"\0")[0]


@contextlib.contextmanager
def _incoming(folder: bytes) -> Iterator[bytes]:
    """A hidden folder on the same file system, locked while it is in use; left-over ones are removed."""
    try:
        for name in os.listdir(folder):
            if name.startswith(_INCOMING):
                _remove_stale(_join(folder, name))
        path = tempfile.mkdtemp(prefix=_INCOMING, dir=folder)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise WriteError(folder, error) from error
    try:
        _lock(fd)
        yield path
    finally:
        os.close(fd)
        shutil.rmtree(path, ignore_errors=True)  # what stays is removed by the next transfer


def _remove_stale(path: bytes) -> None:
    """Remove the folder of a transfer whose process is gone."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _lock(fd):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or a file system without locks
        return False
    return True


def _write_all(fd: int, data: bytes | memoryview) -> None:
    written = os.write(fd, data) if data else 0
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _say(told: dict[str, Any]) -> None:
    _write_all(1, json.dumps(told, separators=(",", ":")).encode("ascii") + b"\n")


def _main_pack(request: dict[str, Any]) -> int:
    packer = Packer(lambda data: _write_all(1, data), request["nonce"])
    pack(bytes_of(request["folder"]), request["globs"], request["known"], packer)
    return 0


def _main_unpack(request: dict[str, Any], source: Source) -> int:
    os.umask(0)  # modes are kept

    def answer(done: list[Entry], failed: list[str]) -> None:
        _say({"names": [entry.name for entry in done], "bytes": sum(entry.size for entry in done), "failed": failed})

    unpacker = Unpacker(source, bytes_of(request["folder"]), request["nonce"], links=True, on_batch=answer)
    try:
        unpacker.run()
    except WriteError as error:
        _say({"error": "write", "path": error.path, "reason": error.reason})
        return 1
    except StreamError as error:
        _say({"error": "stream", "reason": str(error)})
        return 1
    _say({"end": True, "refused": unpacker.refused.items, "refused_count": unpacker.refused.count})
    return 0


def _is_current(digest: str) -> bool:
    with open(__file__, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() == digest


def main() -> int:
    """Pack to the output, or unpack from the input, as the first line of the input says.

    Arguments are the verb and the SHA-256 of the text of this program that the controller wants.
    """
    verb, digest = sys.argv[1:]
    if not _is_current(digest):
        return STALE_STATUS
    source = Source(lambda size: os.read(0, min(size, _INPUT_BYTES)))
    request = json.loads(source.line(_MAX_REQUEST_BYTES).decode("utf-8"))
    folder = request["folder"]
    if folder.startswith("~/"):
        request["folder"] = os.path.expanduser(folder)
    try:
        return _main_pack(request) if verb == "pack" else _main_unpack(request, source)
    except (BrokenPipeError, TruncatedError):  # the controller is gone, and with it whoever could be told
        return 1


if __name__ == "__main__":
    sys.exit(main())
