"""The command line. Only code below this package prints, prompts or exits."""

from __future__ import annotations

import importlib
import sys

import click

_COMMANDS = {
    "run": "Run a job on a leased machine, bring its results back, and prove the machine gone.",
    "offers": "Show which GPU machines can be had where, at what price: the cheapest first.",
    "list": "List leased machines and what is left over.",
    "logs": "Show the log of a lease's job.",
    "ssh": "Open a shell on a lease's machine, or run a command there.",
    "attach": "Go on with a job that was left running, as if never gone.",
    "collect": "Bring the artifacts of a lease home, and release it if its job has ended.",
    "down": "End leases now, with the artifacts so far if their run is alive.",
    "cleanup": "Find and remove what outlived its lease.",
    "doctor": "Check that everything a run needs is there, before money is spent.",
    "completion": "Print the completion script of a shell.",
}
"""What ``--help`` shows; the modules behind the names are imported only when one is used."""


class LazyGroup(click.Group):
    """A group that knows its commands by name, so that ``--help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in reading order."""
        return [*_COMMANDS]  # not list(): importing the command of that name puts its module in this namespace

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"provisioner.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for one that is not known."""
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"no such command: {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - same
        """The command table of ``--help``, from names alone."""
        with formatter.section("Commands"):
            formatter.write_dl([*_COMMANDS.items()])


_EPILOG = """\b
Examples:
  gpu-runner run --artifact metrics.json -- python train.py
  gpu-runner run --setup 'pip install -r requirements.txt' --timeout 2h -- python train.py
  gpu-runner offers --gpu A10G
  gpu-runner cleanup --dry-run
"""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_EPILOG,
)
@click.version_option(package_name="gpu-runner", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback for errors that are not expected.")
def cli(*, debug: bool) -> None:
    """Get a GPU machine for a job, run it there, bring the results back, and prove that the machine is gone."""


def main() -> None:
    """Run the command line; the one place where errors become exit codes."""
    try:
        code = cli.main(standalone_mode=False, prog_name="gpu-runner")
    except BaseException as error:  # noqa: BLE001 - every error ends as an exit code
        from provisioner.cli import failures

        code = failures.report(error, sys.argv[1:])
    sys.exit(_flushed(code if isinstance(code, int) else 0))


def _flushed(code: int) -> int:
    """The exit code, once what was printed has arrived: a reader that has gone changes nothing, a full disk does."""
    try:
        sys.stdout.flush()
    except OSError as error:
        from provisioner.cli import failures

        return failures.report_lost_output(error, code)
    return code
