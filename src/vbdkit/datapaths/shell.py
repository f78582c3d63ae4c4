"""What a script in shell attached: noted, so that it is not forgotten, and left to that script."""

from vbdkit.engine.datapath import Datapath
from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run


class Shell(Datapath):
    """The storage of a script that sources block-common.sh. ``engine.deliver`` writes its records."""

    name = "shell"

    def detach(self, run: "Run", made: "dict[str, str]") -> str:
        """Say whose the device is. Raises Failure where somebody collects: nobody but its script knows how."""
        device, script = made.get("device", "a device"), made.get("script", "a script that is not known")
        if run.command:
            return f"{device} stays as it is, it belongs to {script}"
        raise Failure(
            "{device} was attached by {script}, which alone can take it back (see there what its remove does); "
            "then remove the record {record}",
            device=device,
            script=script,
            record=run.records.path(run.vbd.name),
        )
