"""For all tests: hypothesis does not hold examples to a time, since a busy machine would make them fail."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gpu-runner", settings(settings.default, deadline=None))
settings.load_profile("gpu-runner")
