"""From an error to words and an exit code."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Sequence

import click

from provisioner.cli import style
from provisioner.cli.streams import print_document, tell
from provisioner.errors import ExitCode, GpuRunnerError, Outcome


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Tell the user, on stderr and with ``--json`` on stdout too.

    Args:
        error: What ended the command.
        argv: The command line without the program.

    Returns:
        The exit code.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.INTERNAL
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return ExitCode.OK
    own = _own_arguments(argv)
    known = _as_known(error)
    if "--json" in own:
        print_document(_document(known))
    _print(known, error, own)
    return known.exit_code


def print_any(error: BaseException) -> None:
    """An error that did not end the command, expected or not, in the same words as one that does."""
    _print(_as_known(error), error, _own_arguments(sys.argv[1:]))


def watch_threads() -> None:
    """From now on a thread that fails says so like everything else, and shows a traceback only with ``--debug``."""
    threading.excepthook = lambda failed: print_any(failed.exc_value) if failed.exc_value is not None else None


def _own_arguments(argv: Sequence[str]) -> Sequence[str]:
    """The command line without the job's."""
    return argv[: argv.index("--")] if "--" in argv else argv


def _print(known: GpuRunnerError, error: BaseException, own: Sequence[str]) -> None:
    print_error(known)
    if not isinstance(error, (GpuRunnerError, click.ClickException, click.Abort, KeyboardInterrupt)):
        _explain_unexpected(error, debug="--debug" in own or bool(os.environ.get("GPU_RUNNER_DEBUG")))


def report_lost_output(error: OSError, code: int) -> int:
    """What was printed on stdout did not arrive.

    Args:
        error: Why.
        code: The exit code so far.

    Returns:
        The exit code.
    """
    _silence_stdout()
    if isinstance(error, BrokenPipeError):
        return code
    print_error(GpuRunnerError("the output could not be written", details=str(error)))
    return code or ExitCode.INTERNAL


def print_error(error: GpuRunnerError) -> None:
    """Three parts: what happened, why, what to do."""
    tell(f"{style.bad('error:')} {error.brief}")
    for line in error.details.splitlines():
        tell(f"  {line}")
    if error.resolution:
        tell(f"{style.dim('next:')} {error.resolution}")


def _as_known(error: BaseException) -> GpuRunnerError:
    if isinstance(error, GpuRunnerError):
        return error
    if isinstance(error, click.UsageError):
        from provisioner.errors import ConfigError

        path = error.ctx.command_path if error.ctx else "gpu-runner"
        return ConfigError(error.format_message(), resolution=f"see `{path} --help`")
    if isinstance(error, click.ClickException):
        return GpuRunnerError(error.format_message())
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        from provisioner.errors import CancelledError

        return CancelledError("interrupted")
    return GpuRunnerError(f"internal error: {type(error).__name__}: {error}")


def _explain_unexpected(error: BaseException, *, debug: bool) -> None:
    if debug:
        tell("".join(traceback.format_exception(error)))
    else:
        tell(f"{style.dim('next:')} run it again with --debug and report what it prints")


def _document(error: GpuRunnerError) -> dict[str, object]:
    outcome: Outcome = error.outcome
    return {
        "outcome": str(outcome),
        "exit_code": int(error.exit_code),
        "error": {"brief": error.brief, "details": error.details, "resolution": error.resolution},
    }


def _silence_stdout() -> None:
    """The reader of our output has gone; nothing is left to be said, and the interpreter must not try."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
