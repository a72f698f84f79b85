"""What the pipeline tells, as lines: plain in CI and in files, with a live last line on a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Mapping

from provisioner import ci, units
from provisioner.cli import style
from provisioner.cli.streams import STDERR, STDOUT, write_all
from provisioner.clock import Clock

_REDRAW_S = 0.1


class Reporter:
    """The observer of a run.

    Args:
        clock: For the time column.
        environ: Tells the CI system, whose log groups are used.
        log_fd: Where the job's log goes: 1, or 2 with ``--json``.
        quiet: Whether to leave out everything but warnings and the log.
    """

    def __init__(self, clock: Clock, environ: Mapping[str, str], *, log_fd: int = STDOUT, quiet: bool = False) -> None:
        self._clock = clock
        self._start_s = clock.elapsed_s()
        self._system = ci.detect(environ)
        self._live = sys.stderr.isatty() and self._system is ci.CiSystem.NONE
        self._log_fd = log_fd
        self._quiet = quiet
        self._lock = threading.RLock()
        self._group = ""
        self._live_line = ""
        self._drawn_s = 0.0
        self._log_at_line_start = True
        self._log_broken = False

    def step(self, name: str, detail: str = "") -> None:
        """See Observer."""
        with self._lock:
            self._close_group()
            if self._system in {ci.CiSystem.GITHUB, ci.CiSystem.GITLAB} and not self._quiet:
                self._group = name
                self._line(ci.group_start(self._system, f"{name}  {detail}", key=name, at_unix_s=self._unix_s()))
                if name == "run":  # the job's own log stays unfolded
                    self._close_group()
            else:
                self._say(f"{style.bold(f'{name:<8}')} {detail}")

    def note(self, text: str) -> None:
        """See Observer."""
        self._say(f"{'':<8} {text}")

    def warning(self, text: str) -> None:
        """See Observer."""
        with self._lock:
            if self._system is ci.CiSystem.GITHUB:
                self._line(ci.warning_line(text))
            else:
                self._line(f"{self._stamp()} {style.warn('warning:')} {text}")

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """See Observer."""
        with self._lock:
            now_s = self._clock.elapsed_s()
            if not self._live or self._quiet or now_s - self._drawn_s < _REDRAW_S:
                return
            self._drawn_s = now_s
            done = units.format_bytes(done_bytes)
            share = f" of {units.format_bytes(total_bytes)} ({done_bytes / total_bytes:.0%})" if total_bytes else ""
            self._live_line = f"{self._stamp()} {'':<8} {done}{share}"
            self._write(f"\r\x1b[K{self._live_line}")

    def log(self, chunk: bytes) -> None:
        """See Observer. A reader that has gone, or a full disk behind stdout, does not stop the job."""
        with self._lock:
            self._clear_live_line()
            if self._log_broken:
                return
        try:
            write_all(self._log_fd, chunk)
        except OSError as error:
            self._log_broken = True
            self.warning(f"the log cannot be shown any more ({error.strerror}); the job goes on")
        self._log_at_line_start = chunk.endswith(b"\n")

    def finish(self) -> None:
        """Close what is open."""
        with self._lock:
            self._close_group()
            self._clear_live_line()

    def _say(self, text: str) -> None:
        if not self._quiet:
            with self._lock:
                self._line(f"{self._stamp()} {text}")

    def _stamp(self) -> str:
        return style.dim(f"[{self._clock.elapsed_s() - self._start_s:6.1f} s]")

    def _line(self, text: str) -> None:
        self._clear_live_line()
        if not self._log_at_line_start:
            text = f"\n{text}"
            self._log_at_line_start = True
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads; the work goes on all the same
            write_all(STDERR, text.encode("utf-8", "backslashreplace"))

    def _clear_live_line(self) -> None:
        if self._live_line:
            self._write("\r\x1b[K")
            self._live_line = ""

    def _close_group(self) -> None:
        if self._group:
            end = ci.group_end(self._system, key=self._group, at_unix_s=self._unix_s())
            if end:
                self._line(end)
            self._group = ""

    def _unix_s(self) -> int:
        return int(self._clock.utc().timestamp())
