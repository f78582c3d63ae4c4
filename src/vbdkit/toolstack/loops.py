"""Which loop devices are on a file, and whether this process could have one. Asks only; binds and frees nothing."""

import os
from fcntl import ioctl
from pathlib import Path

from vbdkit.platform.linux import loop


def loops_of(path: Path) -> set[str]:
    """Return the loop devices that are bound to a file or block device, as paths. Empty where there are none to ask.

    Without the right to ask the devices, the names that sysfs gives have to do.
    """
    found = set()
    for folder in Path("/sys/block").glob("loop*/loop"):
        name = folder.parent.name
        try:
            if _is_on(int(name.removeprefix("loop")), path):
                found.add(f"/dev/{name}")
        except OSError:
            continue  # it went while we looked
    return found


def _is_on(number: int, path: Path) -> bool:
    """Whether a loop device is bound to this file or device. Raises OSError."""
    try:
        bound = loop.query(number)
    except PermissionError:
        return Path(f"/sys/block/loop{number}/loop/backing_file").read_bytes().rstrip(b"\n") == os.fsencode(
            path.resolve()
        )
    target = path.stat()
    return bound is not None and (
        bound.backing == (target.st_dev, target.st_ino) or (bound.backing_rdev or -1) == target.st_rdev
    )


def why_no_loops() -> str:
    """Return why this process cannot have a loop device, as part of a sentence; empty where it can."""
    if os.geteuid() != 0:
        return "you are not root"
    control = "/dev/loop-control"
    try:
        descriptor = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{control}: {error.strerror}"
    try:
        device = loop.device_path(ioctl(descriptor, loop.LOOP_CTL_GET_FREE))
        # A container may have the control device and be kept from the devices. A missing node the script makes.
        if os.path.exists(device):
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{os.fsdecode(error.filename or control)}: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""
