"""The corpus: inputs worth starting from, made here and not kept as files."""

from vbdkit.xenstore import codec

ERROR = [b"ENOENT\0", b"EAGAIN\0", b"E2BIG\0", b"nonsense", b"\xff\0"]


def _codec() -> list[bytes]:
    packets = [
        codec.packet(codec.READ, 1, 0, b"device/vbd/51712/state\0"),
        codec.packet(codec.WRITE, 2, 7, b"/a/b\0value"),
        codec.packet(codec.WATCH_EVENT, 0, 0, b"backend/vbd\0token\0"),
        codec.packet(codec.ERROR, 3, 0, b"ENOENT\0"),
        codec.packet(codec.DIRECTORY, 4, 0, b""),
        codec.packet(codec.READ, 5, 0, b"x" * codec.PAYLOAD_MAX),
        codec.HEADER.pack(codec.READ, 6, 0, codec.PAYLOAD_MAX + 1),
        codec.HEADER.pack(codec.READ, 6, 0, 0xFFFFFFFF),
    ]
    whole = b"".join(packets)
    cuts = [b"\0\0", b"\1\1\0", b"\0\2\x0f\x10", b"\1\3\0\xfe\x01"]
    return [cut + stream for cut in cuts for stream in (*packets, whole, whole[:50])] + [
        b"\0\0" + path for path in (b"/", b"//", b"a/", b"@releaseDomain", b"@a/b", b"a" * 2049, b"/" + b"a" * 3072)
    ]


def _client() -> list[bytes]:
    seeds = []
    for call, op in enumerate((2, 2, 1, 1, 3, 11, 13, 6, 6, 10, 17, 4, 15, 0)):
        answers = (b"T\0", b"1\0", b"OK\0", b"value", b"a\0b\0", b"", *ERROR)
        for answer in answers:
            replies = b"".join(codec.packet(op, n, 0, answer) for n in range(3))
            events = codec.packet(codec.WATCH_EVENT, 0, 0, b"a\0t\0")
            failure = codec.packet(codec.ERROR, 0, 0, answer)
            for stream in (replies, events + replies, failure + replies[len(failure) :], replies[:20]):
                seeds.append(bytes([0, call]) + b"\xff" + stream)
    return seeds


def _text(value: bytes) -> bytes:
    """The form that Input.text reads."""
    if len(value) < 255:
        return bytes([len(value)]) + value
    long = (len(value) + 15) // 16
    return b"\xff" + bytes([long - 1]) + value.ljust(16 * long, b"x")


def _request(client: int, op: int, *strings: bytes, tx: int = 0, terminated: bool = True) -> bytes:
    """One request as store_target reads it."""
    kind = 2 * op + terminated
    return bytes([client, kind, len(strings)]) + b"".join(map(_text, strings)) + bytes([tx])


def _store() -> list[bytes]:
    write = [_request(0, codec.WRITE, path, b"v", terminated=False) for path in (b"/a/b/c", b"x", b"/local/domain/5/y")]
    read = [_request(client, codec.READ, b"/a/b/c") for client in range(4)]
    permit = [
        _request(0, codec.SET_PERMS, b"/a/b", *texts)
        for texts in (
            (b"n5",),
            (b"b0", b"r6"),
            (b"n0x" + b"f" * 3600,),
            (b"n-1",),
            (b"n 5",),
            (b"w5 ",),
            (b"n1_0",),
            (b"n",),
        )
    ]
    watch = [
        _request(client, codec.WATCH, path, token)
        for client in (0, 1)
        for path, token in ((b"/", b"t"), (b"x", b"t"), (b"@releaseDomain", b""), (b"/a", b"t" * 4000))
    ]
    begin, commit = _request(0, codec.TRANSACTION_START, b""), _request(0, codec.TRANSACTION_END, b"T", tx=1)
    perms = _request(0, codec.GET_PERMS, b"/a/b")
    remove = _request(0, codec.RM, b"/a")
    inside = [_request(0, codec.WRITE, b"/a/b/c", b"w", tx=1, terminated=False), _request(0, codec.RM, b"/a/b", tx=1)]
    domains = [
        _request(0, op, number, b"1", b"1") if op == codec.INTRODUCE else _request(0, op, number)
        for op in (codec.INTRODUCE, codec.IS_DOMAIN_INTRODUCED, codec.GET_DOMAIN_PATH, codec.RESUME, codec.RELEASE)
        for number in (b"5", b"0", b"7", b"", b"x", b"9" * 4000, b"-1", b"\xc2\xb2")
    ]
    deep = _request(0, codec.WRITE, b"/a" * 1000, b"", terminated=False)
    return [
        b"".join(write + read),
        *(b"".join([*write, one, perms, *read, perms]) for one in permit),
        b"".join([*watch, *write, deep, remove]),
        b"".join([*write, begin, *inside, commit, *read]),
        b"".join([*write, begin, *inside, *write, commit, remove, remove]),
        *domains,
        b"".join([*watch, _request(0, codec.SET_TARGET, b"5", b"6"), *read, *domains]),
        deep + _request(0, codec.DIRECTORY_PART, b"/a", b"0") + _request(0, codec.DIRECTORY, b"/") + remove,
        bytes([0, 250]) + codec.packet(codec.READ, 9, 0, b"/a\0").ljust(64, b"\0"),
    ]


def _texts() -> list[bytes]:
    return [
        *(
            b"backend/vbd/5/51712",
            b"/local/domain/0/backend/vbd3/5/51712",
            b"backend/-_-/0/0",
            b"backend/" + b"v" * 32 + b"/1/2",
        ),
        *(
            b"block\nadd",
            b"block\n2\nbackend/vbd/5/51712",
            b"block\nadd\na=b\nbackend/vbd/5/51712",
            b"\0add\0backend/vbd/5/1",
        ),
        *(b"r", b"w!", b"rw", b"7:0", b"fd:1a", b"0x7:0", b"f" * 40 + b":1", b"+7:0", b"7:0_1", b"\xc2\xb2:1"),
        *(b"\x1b[31m\n", "ä\u202e\ud7ff".encode(), b"\xff" * 4096, b"{x}{0}" * 100, "\U0010ffff".encode() * 1024),
    ]


SEEDS = {"codec": _codec(), "client": _client(), "store": _store(), "texts": _texts()}
