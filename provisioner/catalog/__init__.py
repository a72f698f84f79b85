"""Offers: the bundled table, what a user wants of it, ranking, and why an answer is empty."""

from __future__ import annotations
