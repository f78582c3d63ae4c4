"""Taking back what a custom script attached, by that script, in a run that is not its own (``vbdkit gc``).

It is started with ``--detach``, the backend path and the record on stdin; the record stays with whoever holds it.
"""

import os
import stat

from vbdkit.engine.record import lines
from vbdkit.engine.tool import ToolError, run_tool
from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run


def detach(run: "Run", made: "dict[str, str]") -> None:
    """Have the script of a record take back what it made. Raises Failure where it does not, or is not there."""
    script = os.fsencode(made.get("script", ""))
    try:
        there = stat.S_ISREG(os.stat(script).st_mode) and os.access(script, os.X_OK)
    except OSError:
        there = False
    if not there:
        raise Failure(
            "{target} was attached by {script}, which alone can take it back and is not there; put it back, or undo "
            "that by hand and remove the record {record}",
            target=made.get("target", "a disk"),
            script=script or "a script that is not known",
            record=run.records.path(run.vbd.name),
        )
    try:
        run_tool(run, [script, b"--detach", run.vbd.path], stdin=lines(made).encode("ascii"))
    except ToolError as error:
        raise Failure("{script}: {why}", script=script, why=error.said or error) from None
