"""The toolstack's half of the protocol: the nodes, the script's run, and model backend drivers for hosts without Xen.

What libxl does around a block script (docs/protocol.md, C3-C6, I1-I5), for trying and testing one. A program that
drives real guests has its own toolstack; this one starts no domain.
"""

from vbdkit.toolstack.driver import FreebsdDriver, LinuxDriver, ModelDriver, driver_for
from vbdkit.toolstack.nodes import (
    Disk,
    Guest,
    add_disk,
    close_disk,
    create_guest,
    destroy_guest,
    remove_disk,
    wait_for_state,
)
from vbdkit.toolstack.script import ScriptRun, run_script

__all__ = [
    "Disk",
    "FreebsdDriver",
    "Guest",
    "LinuxDriver",
    "ModelDriver",
    "ScriptRun",
    "add_disk",
    "close_disk",
    "create_guest",
    "destroy_guest",
    "driver_for",
    "remove_disk",
    "run_script",
    "wait_for_state",
]
