"""Tests; packages, so that helpers are imported as ``tests.tools``."""
