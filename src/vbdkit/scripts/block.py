"""The ``block`` script: a file or a device becomes a guest's disk (C1). What an installed stub calls."""

import posix

from vbdkit import platform
from vbdkit.datapaths import load
from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR, TIME_LIMIT, fill_in, main_environment, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main(
    system: str = "",
    run_dir: bytes = RUN_DIR,
    lock_dir: bytes = LOCK_DIR,
    time_limit: float = TIME_LIMIT,
    **settings: bytes,
) -> "NoReturn":
    """Run and end the process. ``settings`` are those that only this system has (its package's ``configure``).

    It ends without the interpreter's clean-up, which costs a tenth of the whole run: every descriptor
    is close-on-exec and nothing is buffered here.
    """
    fill_in()
    if settings:
        platform.load(system or platform.current()).configure(**settings)
    argv, environ = main_environment()
    posix._exit(run(argv, environ, load, system, run_dir, lock_dir, time_limit, own_process=True))
