"""vbdkit gives Xen guests their disks. ARCHITECTURE.md is the map of this package's rooms."""

__version__ = "0.1.0"
