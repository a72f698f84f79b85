"""Providers by name. Their modules, and so their SDKs, are imported only when asked for."""

from __future__ import annotations

import difflib
import importlib

from provisioner.clock import Clock
from provisioner.errors import ConfigError
from provisioner.providers.base import Provider

_PROVIDERS = {
    "local": "provisioner.providers.local:LocalProvider",
}


def names() -> tuple[str, ...]:
    """Names of all providers that this version can use."""
    return tuple(_PROVIDERS)


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
    module_name, class_name = _PROVIDERS[name].split(":")
    provider: Provider = getattr(importlib.import_module(module_name), class_name)(clock=clock)
    return provider
