"""For authors of custom scripts: all that one needs. docs/tutorial-custom-script.md shows how it is used.

from vbdkit.custom import Storage, main

class Ram(Storage):
    ...

main(Ram)
"""

import sys

from vbdkit import hot

hot.load("custom", "remove" if {"remove", "6"} & set(sys.argv[1:]) else "add", sys.platform.rstrip("0123456789"))

from vbdkit.engine.custom import Storage, verb  # noqa: E402
from vbdkit.engine.tool import ToolError  # noqa: E402
from vbdkit.protocol.failure import Failure  # noqa: E402
from vbdkit.protocol.mode import Mode  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Failure", "Mode", "Storage", "ToolError", "main", "verb"]


def main(storage: type[Storage], **settings: "str | bytes | float") -> "NoReturn":
    """Be the block script for a class of storage; ends the process.

    ``settings``: ``time_limit`` in seconds, and what tests and other systems need: ``run_dir``, ``lock_dir`` (bytes),
    ``system``, and settings that only that system has.
    """
    from vbdkit.scripts.custom import main as run

    run(storage=storage, **settings)  # type: ignore[arg-type]
