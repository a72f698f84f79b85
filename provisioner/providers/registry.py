"""Providers by name. Their modules, and so their SDKs, are imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

from provisioner.clock import Clock
from provisioner.errors import ConfigError
from provisioner.models import Offer
from provisioner.providers.base import Provider

_PROVIDERS = {
    "local": "provisioner.providers.local:LocalProvider",
}
_OFFERS = {
    "local": "provisioner.providers.local.stock:of_host",
}
"""What tells the offers of a provider that knows its own, without loading all of it."""


def names() -> tuple[str, ...]:
    """Names of all providers that this version can use."""
    return tuple(_PROVIDERS)


def own_offers(name: str) -> Sequence[Offer]:
    """What a provider says that it offers itself; empty for one whose offers are in the bundled table.

    Args:
        name: Its registry name.

    Returns:
        Its offers, unsorted.
    """
    return _load(_OFFERS[name])() if name in _OFFERS else ()


def create(name: str, clock: Clock) -> Provider:
    """Make a provider.

    Args:
        name: Its registry name.
        clock: The clock it measures ages on.

    Returns:
        The provider, ready to use.

    Raises:
        ConfigError: If the name is not known.
    """
    if name not in _PROVIDERS:
        near = difflib.get_close_matches(name, _PROVIDERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown provider {name!r}", resolution=f"{hint}known: {', '.join(_PROVIDERS)}")
    provider: Provider = _load(_PROVIDERS[name])(clock=clock)
    return provider


def _load(path: str) -> Any:
    module_name, name = path.split(":")
    return getattr(importlib.import_module(module_name), name)
