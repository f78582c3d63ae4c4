"""The block-script protocol as data: names, words, paths and calling conventions. No I/O, imports no other room."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.protocol.disk import Disk, DiskError, disk_json, parse_disk
    from vbdkit.protocol.invocation import (
        ADD,
        REMOVE,
        Invocation,
        InvocationError,
        build_invocation,
        parse_invocation,
    )
    from vbdkit.protocol.mode import Mode, parse_mode
    from vbdkit.protocol.vbd import Vbd, backend_path, parse_backend_path
    from vbdkit.protocol.vdev import Vdev, VdevError, parse_vdev

__all__ = [
    "ADD",
    "REMOVE",
    "Disk",
    "DiskError",
    "Invocation",
    "InvocationError",
    "Mode",
    "Vbd",
    "Vdev",
    "VdevError",
    "backend_path",
    "build_invocation",
    "disk_json",
    "parse_backend_path",
    "parse_disk",
    "parse_invocation",
    "parse_mode",
    "parse_vdev",
]

_WHERE = {
    "ADD": "invocation",
    "REMOVE": "invocation",
    "Disk": "disk",
    "DiskError": "disk",
    "Invocation": "invocation",
    "InvocationError": "invocation",
    "Mode": "mode",
    "Vbd": "vbd",
    "Vdev": "vdev",
    "VdevError": "vdev",
    "backend_path": "vbd",
    "build_invocation": "invocation",
    "disk_json": "disk",
    "parse_backend_path": "vbd",
    "parse_disk": "disk",
    "parse_invocation": "invocation",
    "parse_mode": "mode",
    "parse_vdev": "vdev",
}


def __getattr__(name: str) -> object:
    from vbdkit._lazy import load

    return load(__name__, _WHERE, name)
