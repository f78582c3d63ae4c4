"""Fixtures of this room's tests."""

from tests.images import image

__all__ = ["image"]
