"""Asks Debian's libxl and libxlutil, one question a line; run by tests/libxl.py, since a fault in C ends the process.

A line is a JSON list: ["disk", part, ...] is answered by {"json": text or null, "errors": text}, ["vdev", name] by the
number or null, ["rewrite", json] by the same disk's JSON. Bytes that are no UTF-8 are surrogates, both ways.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable

ROOM = 4096  # more than any of their structures


class Parser:
    """libxlutil's parser of disk specifications, as xl calls it."""

    def __init__(self, libxl: ctypes.CDLL) -> None:
        self.libxl = libxl
        self.libxlutil = ctypes.CDLL("libxlutil.so.4.17")
        self.libc = ctypes.CDLL(None)
        self.libc.fdopen.restype = ctypes.c_void_p
        self.libxlutil.xlu_cfg_init.restype = ctypes.c_void_p
        self.libxl.libxl_device_disk_to_json.restype = ctypes.c_char_p
        self.errors = os.memfd_create("errors")
        self.stream = ctypes.c_void_p(self.libc.fdopen(self.errors, b"w"))
        self.configuration = ctypes.c_void_p(self.libxlutil.xlu_cfg_init(self.stream, b"command line"))

    def ask(self, *parts: str) -> dict[str, str | None]:
        os.lseek(self.errors, 0, os.SEEK_SET)
        os.truncate(self.errors, 0)
        disk = ctypes.create_string_buffer(ROOM)
        self.libxl.libxl_device_disk_init(disk)
        texts = (ctypes.c_char_p * len(parts))(*map(os.fsencode, parts))
        failed = self.libxlutil.xlu_disk_parse(self.configuration, len(parts), texts, disk, None)
        self.libc.fflush(self.stream)
        shown = None
        if not failed:
            context = ctypes.create_string_buffer(1 << 16)  # used for allocation only
            shown = os.fsdecode(self.libxl.libxl_device_disk_to_json(context, disk))
        return {"json": shown, "errors": os.fsdecode(os.pread(self.errors, 1 << 20, 0))}

    def rewrite(self, text: str) -> str:
        disk, context = ctypes.create_string_buffer(ROOM), ctypes.create_string_buffer(1 << 16)
        self.libxl.libxl_device_disk_init(disk)
        if self.libxl.libxl_device_disk_from_json(context, disk, os.fsencode(text)):
            return "refused"
        return os.fsdecode(self.libxl.libxl_device_disk_to_json(context, disk))


class Numbers:
    """libxl's numbers of virtual devices: internal, but in the path that libxl_vdev_to_device_disk reads."""

    def __init__(self, libxl: ctypes.CDLL) -> None:
        self.libxl = libxl
        self.asked = (ctypes.c_char * 4096).in_dll(ctypes.CDLL(None), "libxl_asked")
        self.context = ctypes.c_void_p()
        libc, log = ctypes.CDLL(None), ctypes.CDLL("libxentoollog.so.1")
        libc.fdopen.restype = log.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
        nowhere = ctypes.c_void_p(libc.fdopen(os.open("/dev/null", os.O_WRONLY), b"w"))
        logger = ctypes.c_void_p(log.xtl_createlogger_stdiostream(nowhere, 7, 0))
        if libxl.libxl_ctx_alloc(ctypes.byref(self.context), 0, 0, logger):
            sys.exit("libxl_ctx_alloc failed")

    def ask(self, name: str) -> int | None:
        self.asked.value = b""
        self.libxl.libxl_vdev_to_device_disk(self.context, 5, os.fsencode(name), ctypes.create_string_buffer(ROOM))
        path = self.asked.value.split(b"/")  # /libxl/5/device/vbd/51712/backend
        return int(path[5]) if len(path) == 7 else None


def main() -> None:
    libxl = ctypes.CDLL("libxenlight.so.4.17", mode=ctypes.RTLD_GLOBAL)
    parser = Parser(libxl)
    ask: dict[str, Callable[..., object]] = {
        "disk": parser.ask,
        "rewrite": parser.rewrite,
        "vdev": Numbers(libxl).ask,
    }
    for line in sys.stdin:
        what, *rest = json.loads(line)
        print(json.dumps(ask[what](*rest)), flush=True)


if __name__ == "__main__":
    main()
