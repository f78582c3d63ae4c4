"""Reading what the kernel tells in files: /proc and /sys."""

import posix


def read(path: bytes) -> bytes:
    """Return all of a file that the kernel makes up while it is read. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        posix.close(fd)
