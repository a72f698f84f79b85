"""gpu-runner: a GPU machine for a CI job, and proof that it is gone afterwards."""

from __future__ import annotations

__version__ = "0.1.0"
