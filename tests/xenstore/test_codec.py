"""Packets, however cut, come out as they went in; names and numbers agree with the host."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbdkit.xenstore import codec

PACKETS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=60))
)


@given(PACKETS, st.lists(st.integers(1, 40), min_size=1))
def test_a_stream_gives_the_same_packets_however_it_is_cut(
    packets: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(codec.packet(*each) for each in packets)
    decoder = codec.Decoder()
    found, at, turn = [], 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        assert decoder.missing() > 0
        found += decoder.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert found == packets
    assert decoder.missing() == codec.HEADER_SIZE


@given(PACKETS)
def test_nothing_behind_an_oversized_header_is_believed(packets: list[tuple[int, int, int, bytes]]) -> None:
    stream = b"".join(codec.packet(*each) for each in packets)
    decoder = codec.Decoder(limit=60)
    assert decoder.feed(stream + codec.HEADER.pack(1, 1, 0, 61)) == packets
    assert decoder.oversized == 61
    assert decoder.feed(stream) == []


def test_a_packet_past_the_limit_of_requests_is_a_good_reply() -> None:
    """oxenstored sends such a DIRECTORY."""
    names = codec.terminated(b"%d" % number for number in range(5000))
    assert codec.Decoder().feed(codec.packet(codec.DIRECTORY, 1, 0, names)) == [(codec.DIRECTORY, 1, 0, names)]


def test_missing_tells_the_rest_of_a_packet_whose_header_is_there() -> None:
    decoder = codec.Decoder()
    assert decoder.feed(codec.packet(codec.READ, 1, 0, b"12345")[:-2]) == []
    assert decoder.missing() == 2


@given(st.lists(st.binary().filter(lambda text: b"\0" not in text), min_size=1))
def test_lists_survive_the_wire(strings: list[bytes]) -> None:
    assert codec.split(codec.terminated(strings)) == strings


def test_an_empty_list_is_no_list_of_one_empty_string() -> None:
    assert codec.split(b"") == []
    assert codec.split(b"\0") == [b""]
    assert codec.split(b"a\0b") == [b"a", b"b"]


def test_error_names_and_numbers_agree_with_the_host() -> None:
    assert codec.error_number("ENOENT") == errno.ENOENT
    assert codec.ERROR_NAMES[errno.EAGAIN] == "EAGAIN"
    assert len(codec.ERROR_NUMBERS) == 16


@pytest.mark.parametrize(
    ("payload", "name"), [(b"ENOENT\0", "ENOENT"), (b"EDOM\0", "EDOM"), (b"\xff\n\0", "EIO"), (b"", "EIO")]
)
def test_an_error_packet_has_a_name_even_if_it_is_garbage(payload: bytes, name: str) -> None:
    assert codec.error_name(payload) == name


def test_names_that_this_host_does_not_know_have_a_number_too() -> None:
    assert codec.error_number("EDOM") == errno.EDOM
    assert codec.error_number("EWHATEVER") == errno.EIO


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (b"/a\0token\0", (b"/a", b"token")),
        (b"/a\0\0", (b"/a", b"")),
        (b"/a\0t\0more\0", (b"/a", b"t")),
        (b"/a", (b"/a", b"")),
    ],
)
def test_events(payload: bytes, event: tuple[bytes, bytes]) -> None:
    assert codec.event(payload) == event


@pytest.mark.parametrize("path", [b"/", b"/a", b"/a/b-c_d@e", b"rel", b"rel/x", b"/0"])
def test_paths(path: bytes) -> None:
    assert codec.is_path(path)


@pytest.mark.parametrize("path", [b"", b"//", b"/a/", b"/a//b", b"/a b", b"/a\0", "/é".encode(), b"a/", b"@x", b"/a+"])
def test_what_is_no_path(path: bytes) -> None:
    assert not codec.is_path(path)


def test_special_names_are_paths_where_asked_for() -> None:
    assert codec.is_path(b"@releaseDomain", special=True)
    assert not codec.is_path(b"@release/Domain", special=True)


def test_length_limits() -> None:
    assert not codec.path_too_long(b"/" + b"a" * 3071)
    assert codec.path_too_long(b"/" + b"a" * 3072)
    assert not codec.path_too_long(b"a" * 2048)
    assert codec.path_too_long(b"a" * 2049)
