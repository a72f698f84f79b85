"""Everything that a controller imports sooner or later: loaded once in the process that controllers are forked from."""

from __future__ import annotations

import importlib
import pkgutil

import provisioner

for _module in pkgutil.walk_packages(provisioner.__path__, "provisioner."):
    if not _module.name.endswith(".__main__"):
        importlib.import_module(_module.name)
