"""How a toolstack calls a block script, per operating system: one table, read by both sides.

Linux: ``script add|remove`` with XENBUS_PATH and friends in the environment (C3). FreeBSD:
``script <absolute backend path> add|remove`` (C4). NetBSD: ``script <absolute backend path> 2|6`` (C5).
Owns the words only: nothing here starts a process or reads the store.
"""

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.vbd import Vbd, backend_path, parse_backend_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ADD = "add"
REMOVE = "remove"

# system -> (where the backend path comes from, the words for add and remove)
CONVENTIONS = {
    "linux": ("environment", {b"add": ADD, b"remove": REMOVE}),
    "freebsd": ("argument", {b"add": ADD, b"remove": REMOVE}),
    "netbsd": ("argument", {b"2": ADD, b"6": REMOVE}),
}


class InvocationError(Failure):
    """The script was not called as a toolstack calls it. ``vbd`` is the vbd, where that much was clear."""

    def __init__(self, template: str, vbd: Vbd | None = None, **fields: object) -> None:
        """Keep the vbd beside template and fields."""
        super().__init__(template, **fields)
        self.vbd = vbd


class Invocation:
    """One call: ``command`` is ADD or REMOVE, ``vbd`` says for which device."""

    __slots__ = ("command", "vbd")

    def __init__(self, command: str, vbd: Vbd) -> None:
        """Take both."""
        self.command = command
        self.vbd = vbd


def parse_invocation(system: str, argv: "Sequence[bytes]", environ: "Mapping[bytes, bytes]") -> Invocation:
    """Return what a call asks for.

    ``argv`` is the whole vector with the script's name first; ``environ`` is the process environment.
    Raises InvocationError with a sentence that says how the script is called.
    """
    source, words = CONVENTIONS[system]
    name = argv[0].rpartition(b"/")[2].decode("utf-8", "backslashreplace") if argv else "block"
    verbs = "|".join(word.decode("ascii") for word in words)
    if source == "environment":
        usage = f"XENBUS_PATH=backend/vbd/DOMID/DEVID {name} {verbs}"
        path, arguments = environ.get(b"XENBUS_PATH", b""), argv[1:]
        if not path:
            raise InvocationError("XENBUS_PATH is not set; a toolstack calls: {usage}", usage=usage)
    else:
        usage = f"{name} /local/domain/N/backend/vbd/DOMID/DEVID {verbs}"
        path, arguments = (argv[1], argv[2:]) if len(argv) > 1 else (b"", ())
        if not path:
            raise InvocationError("the backend path is missing; a toolstack calls: {usage}", usage=usage)
    vbd = parse_backend_path(path)
    if vbd is None:
        raise InvocationError(
            "{path} is not the backend path of a virtual disk; a toolstack calls: {usage}", path=path, usage=usage
        )
    # Stock scripts skip arguments with "=" (block-common.sh's evalVariables); callers in the field pass some.
    verb = [word for word in arguments if b"=" not in word]
    if len(verb) != 1 or verb[0] not in words:
        asked = b" ".join(verb) or b"nothing"
        raise InvocationError("asked to do {asked}; a toolstack calls: {usage}", vbd, asked=asked, usage=usage)
    return Invocation(words[verb[0]], vbd)


def build_invocation(
    system: str, script: bytes, command: str, kind: bytes, domid: int, devid: int, own_domid: int = 0
) -> "tuple[list[bytes], dict[bytes, bytes]]":
    """Return (argv, additions to the environment) for running ``script`` as the toolstack on ``system`` does.

    ``own_domid`` is the domain of the backend, i.e. of the caller.
    """
    source, words = CONVENTIONS[system]
    (word,) = [word for word, meaning in words.items() if meaning == command]
    if source == "argument":
        return [script, backend_path(own_domid, kind, domid, devid), word], {}
    return [script, word], {
        b"script": script,
        b"XENBUS_TYPE": kind,
        b"XENBUS_PATH": backend_path(None, kind, domid, devid),
        b"XENBUS_BASE_PATH": b"backend",
    }
