"""One module per kind of storage. The record's ``datapath`` names the one that made it."""

import sys

from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.datapath import Datapath

_CLASSES = {"file": "File", "device": "Device", "custom": "Custom", "shell": "Shell"}


def load(name: str) -> "Datapath":
    """Return the datapath of this name, importing no other. Raises Failure for an unknown one."""
    if name not in _CLASSES:
        raise Failure("there is no kind of storage named {name} in this vbdkit", name=repr(name))
    module = "vbdkit.datapaths." + name
    __import__(module)
    datapath: Datapath = getattr(sys.modules[module], _CLASSES[name])()
    return datapath
