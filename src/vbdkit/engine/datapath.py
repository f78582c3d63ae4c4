"""What one kind of storage has to say: the interface that the modules of ``datapaths`` fill."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run
    from vbdkit.platform import Backing
    from vbdkit.platform.target import Target
    from vbdkit.protocol.mode import Mode


class Datapath:
    """One kind of storage. The engine calls these in order and does everything else.

    ``plan`` says, before anything is done, what a later clean-up needs to find it; ``attach`` does it and
    says in ``Backing.made`` what that was; ``detach`` takes back what the two noted, as far as it is
    there, and returns in words what it did. All three may raise Failure or OSError.
    """

    name = ""
    # Whether it runs programs, which nobody waits for with the sharing lock held.
    slow = False

    def plan(self, run: "Run", target: "Target") -> "dict[str, str]":
        """Return facts for the record: ASCII keys without spaces, any text as values."""
        return {}

    def attach(self, run: "Run", target: "Target", mode: "Mode") -> "Backing":
        """Make the open target into what the backend driver opens."""
        raise NotImplementedError

    def detach(self, run: "Run", made: "dict[str, str]") -> str:
        """Undo ``attach``; quiet where there is nothing left to undo."""
        return ""
