"""What an `add` of a script in shell is at, before it has a device and a record: a file that is held until it ends.

Two guests may be started at once with one target: the one that fails must not take back what the other is about to get.
"""

import posix

from vbdkit.engine.flock import close, free
from vbdkit.engine.record import NEW, lines

# In the folder where the script and its helper talk.
UNDER_WAY = b"add"


def announce(folder: bytes, vbd: str, script: bytes, target: bytes) -> int:
    """Say which vbd is about to get what; returns the file, to be closed when that is decided. Raises OSError."""
    facts = {"vbd": vbd}
    for key, value in (("script", script), ("target", target)):
        facts[key] = value.decode("utf-8", "surrogateescape")
    path = folder + b"/" + UNDER_WAY
    fd = posix.open(path + NEW, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
    try:
        free(fd)
        posix.write(fd, lines(facts).encode("ascii"))
        posix.rename(path + NEW, path)
    except BaseException:
        close(fd)
        raise
    return fd
