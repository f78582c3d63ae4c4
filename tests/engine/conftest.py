"""Fixtures of this room's tests: a host with a real store, and things to attach."""

from tests.host import host
from tests.images import big_sectors, image, loop_device, read_only_loop

__all__ = ["big_sectors", "host", "image", "loop_device", "read_only_loop"]
