"""block-common.sh's other half: the process that a shell script's library talks to. What the library starts.

One process per run of a script, since starting one per call is what makes Xen's own library slow. The library waits for
this module's first part only, which makes the places to talk and leaves; the helper that stays behind loads the
rest meanwhile (``scripts/helper.py``). It is nobody's child, so a script's ``wait`` does not wait for it.
"""

import posix
import sys

from vbdkit.engine.record import RUN_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# The named pipes of one conversation, each made in the folder that the library is told.
PIPES = (b"turn", b"ask", b"answer", b"err")


def main(system: str = "", run_dir: bytes = RUN_DIR, **settings: "Any") -> "NoReturn":
    """Start a helper for the shell that ``sys.argv`` speaks of, print its pid and folder, and end the process."""
    pid, command, script, path, log_dir = [text.encode("utf-8", "surrogateescape") for text in sys.argv[1:6]]
    folder = run_dir + b"/.sh-" + pid
    try:
        _make(run_dir, folder)
        helper = posix.fork()
    except OSError as error:
        from vbdkit.scripts.helper import no_place

        no_place(error, folder, command, script, path)
        posix._exit(1)
    if helper:
        posix.write(1, b"%d %s\n" % (helper, folder))
        posix._exit(0)
    from vbdkit.hot import load

    load("helper", "add", system or sys.platform.rstrip("0123456789"))
    from vbdkit.scripts.helper import serve

    serve(int(pid), command.decode("ascii"), script, path, folder, log_dir, run_dir, system, **settings)
    posix._exit(0)


def _make(run_dir: bytes, folder: bytes) -> None:
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
    for name in PIPES:
        posix.mkfifo(folder + b"/" + name, 0o600)


def clean(folder: bytes) -> None:
    """Take a folder of a conversation away."""
    try:
        for name in PIPES:
            try:
                posix.unlink(folder + b"/" + name)
            except FileNotFoundError:
                pass
        posix.rmdir(folder)
    except OSError:
        pass
