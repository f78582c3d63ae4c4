"""C3-C5 and C7: how a toolstack calls a script, read and built from one table."""

import pytest

from vbdkit.protocol import ADD, REMOVE, InvocationError, build_invocation, parse_backend_path, parse_invocation

PATH = b"backend/vbd/7/51712"
ABSOLUTE = b"/local/domain/3/backend/vbd3/7/51712"


def test_c3_linux_gives_a_word_and_the_environment() -> None:
    call = parse_invocation("linux", [b"/etc/xen/scripts/block", b"add"], {b"XENBUS_PATH": PATH})
    assert (call.command, call.vbd.path, call.vbd.kind, call.vbd.domid, call.vbd.devid) == (ADD, PATH, b"vbd", 7, 51712)


def test_c3_arguments_with_an_equals_sign_are_skipped() -> None:
    assert parse_invocation("linux", [b"block", b"a=b", b"remove"], {b"XENBUS_PATH": PATH}).command == REMOVE


def test_c4_freebsd_gives_the_absolute_path_and_a_word() -> None:
    call = parse_invocation("freebsd", [b"block", ABSOLUTE, b"remove"], {})
    assert (call.command, call.vbd.path, call.vbd.backend, call.vbd.kind) == (REMOVE, ABSOLUTE, 3, b"vbd3")


@pytest.mark.parametrize(("state", "command"), [(b"2", ADD), (b"6", REMOVE)])
def test_c5_netbsd_gives_a_xenbus_state(state: bytes, command: str) -> None:
    assert parse_invocation("netbsd", [b"block", ABSOLUTE, state], {}).command == command


@pytest.mark.parametrize("path", [PATH, ABSOLUTE])
def test_c7_the_path_is_kept_as_it_was_given(path: bytes) -> None:
    vbd = parse_backend_path(path)
    assert vbd is not None
    assert vbd.path == path
    assert vbd.node(b"params") == path + b"/params"


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"backend/vbd/7",
        b"backend/vbd/7/51712/",
        b"backend//7/51712",
        b"backend/vbd/7/hda",
        b"backend/vbd/-1/1",
        b"backend/vbd/07/1",
        b"backend/vbd/7/99999999999",
        b"/backend/vbd/7/51712",
        b"/local/domain/x/backend/vbd/7/51712",
        b"/local/domain/0/device/vbd/51712",
        b"backend/../7/1",
        b"backend/v d/7/1",
        b"backend/\xff/7/1",
        b"backend/" + b"v" * 33 + b"/7/1",
    ],
)
def test_what_is_no_backend_path_is_refused(path: bytes) -> None:
    assert parse_backend_path(path) is None


@pytest.mark.parametrize(
    ("system", "argv", "environ", "says"),
    [
        ("linux", [b"block", b"add"], {}, "XENBUS_PATH is not set"),
        ("linux", [b"block", b"add"], {b"XENBUS_PATH": b"nonsense"}, "nonsense is not the backend path"),
        ("linux", [b"block"], {b"XENBUS_PATH": PATH}, "asked to do nothing"),
        ("linux", [b"block", b"bind"], {b"XENBUS_PATH": PATH}, "asked to do bind"),
        ("linux", [b"block", b"add", b"remove"], {b"XENBUS_PATH": PATH}, "asked to do add remove"),
        ("freebsd", [b"block"], {}, "the backend path is missing"),
        ("freebsd", [b"block", b"add", ABSOLUTE], {}, "add is not the backend path"),
        ("netbsd", [b"block", ABSOLUTE, b"add"], {}, "asked to do add"),
        ("linux", [b"block", b"{x}"], {b"XENBUS_PATH": PATH}, "asked to do {x}"),
    ],
)
def test_a_wrong_call_says_how_it_is_done(
    system: str, argv: list[bytes], environ: dict[bytes, bytes], says: str
) -> None:
    with pytest.raises(InvocationError) as caught:
        parse_invocation(system, argv, environ)
    assert says in str(caught.value)
    assert "a toolstack calls: " in str(caught.value)


@pytest.mark.parametrize("system", ["linux", "freebsd", "netbsd"])
@pytest.mark.parametrize("command", [ADD, REMOVE])
def test_what_is_built_is_what_is_read(system: str, command: str) -> None:
    argv, environ = build_invocation(system, b"/s/block", command, b"vbd", 7, 51712, own_domid=3)
    call = parse_invocation(system, argv, environ)
    assert (call.command, call.vbd.kind, call.vbd.domid, call.vbd.devid) == (command, b"vbd", 7, 51712)
    assert argv[0] == b"/s/block"
    if system == "linux":
        assert environ == {
            b"script": b"/s/block",
            b"XENBUS_TYPE": b"vbd",
            b"XENBUS_PATH": b"backend/vbd/7/51712",
            b"XENBUS_BASE_PATH": b"backend",
        }
    else:
        assert environ == {}
        assert argv[1] == b"/local/domain/3/backend/vbd/7/51712"
