"""The toolstack's half of the protocol: the nodes, the script's run, and model backend drivers for hosts without Xen.

What libxl does around a block script (docs/protocol.md, C3-C6, I1-I5): for running guests, beside xl, and for trying
and testing. It starts no domain.
"""

from vbdkit.toolstack.choice import choose
from vbdkit.toolstack.domains import find_domain
from vbdkit.toolstack.driver import FreebsdDriver, LinuxDriver, ModelDriver, NetbsdDriver, driver_for
from vbdkit.toolstack.lifecycle import Attached, Toolstack, Unfinished
from vbdkit.toolstack.nodes import (
    Disk,
    Guest,
    add_disk,
    close_disk,
    create_guest,
    destroy_guest,
    disks_of,
    find_disk,
    remove_disk,
    wait_for_state,
)
from vbdkit.toolstack.script import ScriptRun, run_here, run_script
from vbdkit.toolstack.settings import Limits, Settings, load_settings

__all__ = [
    "Attached",
    "Disk",
    "FreebsdDriver",
    "Guest",
    "Limits",
    "LinuxDriver",
    "ModelDriver",
    "NetbsdDriver",
    "ScriptRun",
    "Settings",
    "Toolstack",
    "Unfinished",
    "add_disk",
    "choose",
    "close_disk",
    "create_guest",
    "destroy_guest",
    "disks_of",
    "driver_for",
    "find_disk",
    "find_domain",
    "load_settings",
    "remove_disk",
    "run_here",
    "run_script",
    "wait_for_state",
]
