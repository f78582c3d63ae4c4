"""A plain file: a loop device on Linux, the file itself where the driver can open it."""

from vbdkit.engine.datapath import Datapath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run
    from vbdkit.platform import Backing
    from vbdkit.platform.target import Target
    from vbdkit.protocol.mode import Mode


class File(Datapath):
    """A disk image."""

    name = "file"

    def plan(self, run: "Run", target: "Target") -> "dict[str, str]":
        """Return which file it is."""
        facts: dict[str, str] = run.platform.plan(target)
        return facts or {"file": f"{target.stat.st_dev} {target.stat.st_ino}"}

    def attach(self, run: "Run", target: "Target", mode: "Mode") -> "Backing":
        """Bind the file."""
        owner = run.records.owner(run.vbd.name)
        backing: Backing = run.platform.bind(target, mode.writable, owner, run.deadline, run.note)
        return backing

    def detach(self, run: "Run", made: "dict[str, str]") -> str:
        """Release what was bound, if it still is this vbd's."""
        try:
            done: str = run.platform.unbind(made, run.records.owner(run.vbd.name))
        except ValueError:
            raise run.records.unreadable(run.vbd.name, "its numbers are none") from None
        return done
