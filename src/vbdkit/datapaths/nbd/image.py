"""What qemu-img says of an image, asked without ever guessing a format or following a link of its own accord."""

import json

from vbdkit.datapaths.nbd.target import FORMATS, quoted
from vbdkit.engine.tool import ToolError
from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from vbdkit.engine.custom import Storage


def parts_of(storage: "Storage", file: str, form: str) -> "Iterator[tuple[str, bool]]":
    """Yield what an image consists of besides its own file, and whether a guest that writes to it writes there.

    Raises Failure for an image of another format, and for one whose backing image is of no declared format.
    """
    name, kind, seen = file, FORMATS[form], {file}
    while kind != "raw":
        about = _about(storage, name, kind)
        if not about["virtual-size"]:
            raise Failure("{name} is the image of a disk of no size", name=name)
        specific = about.get("format-specific", {}).get("data", {})
        for other in [specific.get("data-file"), *(extent["filename"] for extent in specific.get("extents", ()))]:
            if other and (path := _beside(name, other)) not in seen:
                seen.add(path)
                yield path, name == file
        base = about.get("full-backing-filename")
        if not base:
            return
        kind = about.get("backing-filename-format", "")
        if not kind:
            raise Failure(
                "the image {name} does not say of which format its backing image {base} is, and that is not guessed: a "
                "guest that may write to one can make it look like another; for a raw one say so with "
                "qemu-img rebase -u -b {base} -F raw {name}",
                name=name,
                base=base,
            )
        if not base.startswith("/") or base in seen:
            return  # on another server; or a circle, on which qemu-nbd has the word
        seen.add(base)
        yield base, False
        name = base


def _about(storage: "Storage", file: str, kind: str) -> "dict[str, Any]":
    options = f"driver={kind},file.filename={quoted(file)}"
    try:
        output = storage.tool("qemu-img", "info", "--force-share", "--output=json", "--image-opts", options)
    except ToolError as error:
        raise words(error, f"{file} is of no use as {kind}", options) from None
    return json.loads(output)  # type: ignore[no-any-return]


def _beside(image: str, name: str) -> str:
    return name if name.startswith("/") else image.rpartition("/")[0] + "/" + name


def words(error: ToolError, what: str, options: str) -> Failure:
    """Return a program's own words behind ours, without its repetition of the options that it got."""
    if not error.exit_status:
        return error  # it never ran, or was not done in time
    how = f"exit status {error.exit_status}" if error.exit_status > 0 else f"signal {-error.exit_status}"
    return Failure("{what}: {why}", what=what, why=error.said.rpartition(options + "': ")[2] or how)
