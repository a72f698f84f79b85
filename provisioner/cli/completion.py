"""``gpu-runner completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_EPILOG = """\b
Examples:
  eval "$(gpu-runner completion bash)"
  gpu-runner completion zsh > ~/.zfunc/_gpu-runner
  gpu-runner completion fish > ~/.config/fish/completions/gpu-runner.fish
"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell."""
    from provisioner.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "gpu-runner", "_GPU_RUNNER_COMPLETE").source())
