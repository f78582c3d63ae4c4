"""Fixtures of these tests: a host with a real store, and things to attach."""

from tests.host import host
from tests.images import image, loop_device

__all__ = ["host", "image", "loop_device"]
