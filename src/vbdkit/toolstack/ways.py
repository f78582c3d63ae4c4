"""The three ways to a disk: who turns the target into a device, and who checks and publishes.

``script``: the script does all (O1-O7). ``path-only``: the script writes physical-device-path and the toolstack does
the rest (G1, G2). ``direct``: no script is started, for files and plain devices (G3). Lock, check, record and nodes
are the same engine's each time.

A script says in its manifest that it can leave the publication to the toolstack: a line of its first 4,096 bytes that
is ``# block-script: `` and a JSON object with ``"path-only": true``. Nothing is started to find out: what a strange
script does with a word that it does not know, nobody knows. Such a script looks for VBDKIT_PUBLISH=path in its
environment: without it (under xl) it publishes everything, as ever. On FreeBSD it always does: the driver there opens
what physical-device-path names the moment that it appears, before anybody could have checked it.
"""

import json
from typing import TYPE_CHECKING

from vbdkit.protocol.failure import Failure

if TYPE_CHECKING:
    from vbdkit.toolstack.settings import Settings

BY_SCRIPT = b"script"
PATH_ONLY = b"path-only"
DIRECT = b"direct"

# What a path-only script finds in its environment.
PUBLISH = {b"VBDKIT_PUBLISH": b"path"}
MANIFEST = b"# block-script: "
_HEAD = 4096


def way_for(script: bytes, settings: "Settings") -> bytes:
    """Return the way for a disk whose ``script`` is this. Raises Failure for a manifest that cannot be read."""
    if settings.no_script and script == settings.script():
        return DIRECT
    if settings.system == "freebsd":
        return BY_SCRIPT
    if script in settings.path_only or manifest(script).get("path-only") is True:
        return PATH_ONLY
    return BY_SCRIPT


def manifest(script: bytes) -> dict[str, object]:
    """Return what a script says of itself; empty where it says nothing, or is not there. Raises Failure."""
    try:
        with open(script, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return {}  # whoever starts it will say so
    for line in head.split(b"\n"):
        if line.startswith(MANIFEST):
            try:
                said = json.loads(line.removeprefix(MANIFEST))
            except ValueError as error:
                raise Failure("the manifest in {script} is no JSON: {why}", script=script, why=error) from None
            if not isinstance(said, dict):
                raise Failure("the manifest in {script} is no JSON object", script=script)
            return said
    return {}
