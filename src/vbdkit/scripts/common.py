"""block-common.sh's other half: the process that a shell script's library talks to. What the library starts.

One process per run of a script, since starting one per call is what makes Xen's own library slow. The library waits
for this module's first part only, which makes the places to talk and leaves; the helper that stays behind loads
the rest meanwhile (``scripts/helper.py``). It is nobody's child, so a script's ``wait`` does not wait for it. When its
script has ended, it waits a while for the next one (``scripts/waiting.py``).
"""

import posix
import sys
import time

from vbdkit.engine.record import NEW, RUN_DIR
from vbdkit.engine.underway import UNDER_WAY
from vbdkit.scripts.talk import PIPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def main(system: str = "", run_dir: bytes = RUN_DIR, **settings: "Any") -> "NoReturn":
    """Start a helper for the shell that ``sys.argv`` speaks of, print its pid and folder, and end the process."""
    fields = [text.encode("utf-8", "surrogateescape") for text in sys.argv[1:6]]
    folder = place(run_dir, fields[0])
    try:
        make(run_dir, folder)
        helper = posix.fork()
    except OSError as error:
        from vbdkit.scripts.helper import no_place

        no_place(error, fields, folder)
        posix._exit(1)
    if helper:
        posix.write(1, b"%d %s\n" % (helper, folder))
        posix._exit(0)
    from vbdkit.hot import load

    began = time.time_ns()
    load("helper", "add", system or sys.platform.rstrip("0123456789"))
    from vbdkit.scripts.helper import serve

    if serve(fields, folder, run_dir, system, posix.environ, settings):
        from vbdkit.scripts.waiting import wait

        wait(run_dir, system, settings, began)
    posix._exit(0)


def place(run_dir: bytes, pid: bytes) -> bytes:
    """Return the folder of the conversation with one shell."""
    return run_dir + b"/.sh-" + pid


def make(run_dir: bytes, folder: bytes) -> None:
    """Make the folder and its pipes, for root only. Raises OSError."""
    try:
        posix.mkdir(folder, 0o700)
    except FileNotFoundError:
        try:
            posix.mkdir(run_dir, 0o700)
        except FileExistsError:
            pass  # another script was faster
        posix.mkdir(folder, 0o700)
    except FileExistsError:
        clean(folder)  # of another process that had this pid, and whose helper was killed
        posix.mkdir(folder, 0o700)
    for name in (*PIPES, b"err"):
        posix.mkfifo(folder + b"/" + name, 0o600)


def clean(folder: bytes) -> None:
    """Take a folder of a conversation away."""
    try:
        for name in (*PIPES, b"err", b"pid", UNDER_WAY, UNDER_WAY + NEW):
            try:
                posix.unlink(folder + b"/" + name)
            except FileNotFoundError:
                pass
        posix.rmdir(folder)
    except OSError:
        pass
