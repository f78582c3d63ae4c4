"""Which virtual block device: a backend path taken apart and put together (C3, C4, C7)."""


class Vbd:
    """One vbd as its backend path names it.

    ``path`` is the backend path exactly as the caller gave it: relative or absolute, never rewritten
    (C7). ``kind`` is the backend kind, ``domid`` the frontend's domain, ``devid`` the device's number.
    ``backend`` is the backend's domain where the path is absolute, else None: it is the caller's own.
    """

    __slots__ = ("backend", "devid", "domid", "kind", "path")

    def __init__(self, path: bytes, kind: bytes, domid: int, devid: int, backend: int | None = None) -> None:
        """Take the parts; parse_backend_path makes them from a path."""
        self.path = path
        self.kind = kind
        self.domid = domid
        self.devid = devid
        self.backend = backend

    @property
    def name(self) -> str:
        """The vbd in short, unique on this host: ``vbd-5-51712``. Records and log lines are named so."""
        return f"{self.kind.decode('ascii')}-{self.domid}-{self.devid}"

    @property
    def root(self) -> bytes:
        """The directory that has all backends of the serving domain, this one's among them."""
        return self.path.rsplit(b"/", 3)[0]

    def node(self, name: bytes) -> bytes:
        """Return the path of one of this vbd's backend nodes."""
        return self.path + b"/" + name


# Real kinds have at most 7 (pvcalls). With this a vbd's name fits every place that it stands in.
_KIND_MAX = 32


def parse_backend_path(path: bytes) -> Vbd | None:
    """Return the vbd that a backend path names, or None where it is none.

    Both ``backend/<kind>/<domid>/<devid>`` and ``/local/domain/<n>/backend/<kind>/<domid>/<devid>``
    are understood. Numbers are plain decimals, as libxl writes them.
    """
    parts = path.split(b"/")
    backend: int | None = None
    if parts[:3] == [b"", b"local", b"domain"] and len(parts) == 8 and _plain(parts[3]):
        backend = int(parts[3])
        parts = parts[4:]
    if len(parts) != 4 or parts[0] != b"backend" or not (_plain(parts[2]) and _plain(parts[3])):
        return None
    kind = parts[1]
    if len(kind) > _KIND_MAX or not kind.isascii() or not kind.replace(b"_", b"").replace(b"-", b"").isalnum():
        return None
    return Vbd(path, kind, int(parts[2]), int(parts[3]), backend)


def parse_name(name: bytes) -> Vbd | None:
    """Return the vbd that ``Vbd.name`` names, with a relative path, or None where it is none."""
    return parse_backend_path(b"backend/" + b"/".join(name.rsplit(b"-", 2)))


def backend_path(backend: int | None, kind: bytes, domid: int, devid: int) -> bytes:
    """Return a backend path: relative where ``backend`` is None, as libxl on Linux gives it (C3)."""
    relative = b"backend/%s/%d/%d" % (kind, domid, devid)
    return relative if backend is None else b"/local/domain/%d/%s" % (backend, relative)


def _plain(text: bytes) -> bool:
    """A decimal number without sign, space or leading zero, that fits 32 bits."""
    return text.isdigit() and len(text) <= 10 and (text == b"0" or text[:1] != b"0") and int(text) < 1 << 32
