"""What a target of ``block-nbd`` says, as data: formats of images, NBD URIs, and qemu-nbd's options for them.

The URIs are those of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md, without TLS.
"""

from vbdkit.protocol.failure import Failure

# As people write them -> QEMU's name. ``vhd`` is what xl calls it.
FORMATS = {
    **{name: name for name in ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels")},
    "vhd": "vpc",
}
_PORT = "10809"
# Seconds for which what a guest asks waits for a server that is starting anew, before it gets an error.
_PATIENCE = 10


def parse_uri(text: str) -> "dict[str, str]":
    """Return socket or host and port, and the export's name (may be empty). Raises Failure."""
    scheme, _, rest = text.partition("://")
    rest, _, query = rest.partition("?")
    server, _, export = rest.partition("/")
    if "\0" in text or scheme not in ("nbd", "nbd+tcp", "nbd+unix"):
        raise _wrong(text, "begins with nbd:// or nbd+unix://" + ("; TLS is not served" if "s:" in text[:5] else ""))
    named = dict(word.partition("=")[::2] for word in query.split("&")) if query else {}
    found = {"export": _decoded(export, text)}
    if scheme == "nbd+unix":
        socket = _decoded(named.pop("socket", ""), text)
        if server or not socket.startswith("/"):
            raise _wrong(text, "has no host and an absolute path: nbd+unix:///EXPORT?socket=/PATH")
        found["socket"] = socket
    else:
        if server.startswith("["):
            host, bracket, port = server[1:].partition("]")
            wrong = not bracket or port[:1] not in ("", ":")
        else:
            host, colon, port = server.partition(":")
            port = colon + port
            wrong = ":" in port[1:] or "@" in server
        number = port[1:] or _PORT
        if wrong or not host or not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
            raise _wrong(text, "names a server: nbd://HOST[:PORT]/EXPORT")
        found |= {"host": _decoded(host, text).lower(), "port": str(int(number))}
    if named:
        raise _wrong(text, "has no parameter " + min(named))
    return found


def image_options(target: "dict[str, str]", locked: bool = True) -> str:
    """Return what follows ``--image-opts``. ``locked`` as QEMU locks its images, against its other programs."""
    if "file" in target:
        options = f"driver={FORMATS[target['format']]},file.filename={quoted(target['file'])}"
        return options if locked else options + ",file.locking=off"
    if "socket" in target:
        server = f"file.server.type=unix,file.server.path={quoted(target['socket'])}"
    else:
        server = f"file.server.type=inet,file.server.host={quoted(target['host'])},file.server.port={target['port']}"
    return (
        f"driver=raw,file.driver=nbd,{server},file.export={quoted(target['export'])},file.reconnect-delay={_PATIENCE}"
    )


def quoted(text: str) -> str:
    """Return text as the value of one of QEMU's options."""
    return text.replace(",", ",,")


def _decoded(text: str, whole: str) -> str:
    head, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    data = head
    for part in rest:
        try:
            data += bytes.fromhex(part[:2].decode("ascii")) + part[2:]
        except ValueError:
            raise _wrong(whole, "has two hexadecimal digits behind each %") from None
        if len(part) < 2 or b"\0" in data:
            raise _wrong(whole, "has two hexadecimal digits behind each %, and no NUL byte")
    return data.decode("utf-8", "surrogateescape")


def _wrong(text: str, rule: str) -> Failure:
    return Failure("{uri} is no NBD URI: one {rule}", uri=text, rule=rule)
