"""``python -m provisioner`` is ``gpu-runner``."""

from __future__ import annotations

from provisioner.cli import main

main()
