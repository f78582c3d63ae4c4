"""A device that is there already: used as it is."""

from vbdkit.engine.datapath import Datapath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run
    from vbdkit.platform import Backing
    from vbdkit.platform.target import Target
    from vbdkit.protocol.mode import Mode


class Device(Datapath):
    """A block device (on FreeBSD a character device too)."""

    name = "device"

    def plan(self, run: "Run", target: "Target") -> "dict[str, str]":
        """Return which device it is."""
        return {"number": str(target.stat.st_rdev)}

    def attach(self, run: "Run", target: "Target", mode: "Mode") -> "Backing":
        """Check that the device gives what the mode asks."""
        backing: Backing = run.platform.device(target, mode.writable)
        return backing
