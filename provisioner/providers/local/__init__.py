"""Provider ``local``: each machine is a private SSH server, a home folder and a guard on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provisioner.providers.local.provider import LocalProvider

__all__ = ["LocalProvider"]


def __getattr__(name: str) -> Any:
    """Load the provider on first use: a machine's first process imports this package and must start fast."""
    if name == "LocalProvider":
        from provisioner.providers.local.provider import LocalProvider

        return LocalProvider
    raise AttributeError(name)
