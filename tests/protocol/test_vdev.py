"""Names and numbers of virtual disks are those of xen-vbd-interface(7), and libxl's where both can be asked."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.libxl import Libxl
from vbdkit.protocol import Vdev, VdevError, parse_vdev
from vbdkit.protocol.failure import shown

# xen-vbd-interface(7): its examples, and each encoding's ends.
KNOWN = [
    ("xvda", 202 << 8, ("xvd", 0, 0)),
    ("d0", 202 << 8, ("xvd", 0, 0)),
    ("d0p0", 202 << 8, ("xvd", 0, 0)),
    ("xvdb2", 202 << 8 | 1 << 4 | 2, ("xvd", 1, 2)),
    ("d1p2", 202 << 8 | 1 << 4 | 2, ("xvd", 1, 2)),
    ("xvdp15", 202 << 8 | 15 << 4 | 15, ("xvd", 15, 15)),
    ("xvda16", 1 << 28 | 16, ("xvd", 0, 16)),
    ("xvdq", 1 << 28 | 16 << 8, ("xvd", 16, 0)),
    ("xvdtq37", 1 << 28 | 536 << 8 | 37, ("xvd", 536, 37)),
    ("d536p37", 1 << 28 | 536 << 8 | 37, ("xvd", 536, 37)),
    ("xvdbgqcv255", (1 << 29) - 1, ("xvd", (1 << 20) - 1, 255)),
    ("d1048575p255", (1 << 29) - 1, ("xvd", (1 << 20) - 1, 255)),
    ("sda", 8 << 8, ("sd", 0, 0)),
    ("sdb3", 8 << 8 | 1 << 4 | 3, ("sd", 1, 3)),
    ("sdp15", 8 << 8 | 255, ("sd", 15, 15)),
    ("hda", 3 << 8, ("hd", 0, 0)),
    ("hdb63", 3 << 8 | 1 << 6 | 63, ("hd", 1, 63)),
    ("hdc2", 22 << 8 | 2, ("hd", 2, 2)),
    ("hdd63", 22 << 8 | 1 << 6 | 63, ("hd", 3, 63)),
    ("51712", 51712, ("xvd", 0, 0)),
    ("0xca00", 51712, ("xvd", 0, 0)),
    ("0145000", 51712, ("xvd", 0, 0)),
    ("d0x1p017", 202 << 8 | 1 << 4 | 15, ("xvd", 1, 15)),
    ("0", 0, (None, None, None)),
    ("2147483647", 2147483647, (None, None, None)),
]
REFUSED = [
    *("", "x", "xvd", "hd", "sd1", "xvda0", "xvda01", "xvda256", "xvda1x", "XVDA", "vda", "/dev/xvda", "xvdbgqcw"),
    *("hde", "hda64", "sdq", "sdaa", "sda16", "d", "dp1", "d0p", "d0p256", "d1048576", "d-1", "d1p1p1", "hda1048576"),
    *("2147483648", "-1", "+1", " 1", "1 ", "0x", "08", "1e3", "xvda 1", "xvda+1", "ioemu:hda", "hda:cdrom", "xvdé"),
    *("d4294967296", "d4294967296p0", "d0p4294967296", "xvda4294967297", "99999999999999999999"),
    *("٣", "d٣", "xvda٣", "xvda\n", "1\n"),
]


@pytest.mark.parametrize(("name", "devid", "parts"), KNOWN, ids=str)
def test_a_name_has_its_number(name: str, devid: int, parts: tuple[object, ...]) -> None:
    vdev = parse_vdev(name)
    assert vdev.devid == devid
    assert (vdev.kind, vdev.disk, vdev.partition) == parts
    assert parse_vdev(str(vdev)) == vdev


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_name_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(VdevError) as caught:
        parse_vdev(name)
    assert (shown(name.encode()) or "an empty text") in str(caught.value)


def test_a_refusal_says_which_there_are() -> None:
    for name, words in (
        ("hde", "hda to hdd, partitions 1 to 63"),
        ("sda16", "sda to sdp, partitions 1 to 15"),
        ("xvda256", "xvda to xvdbgqcv, partitions 1 to 255"),
        ("d1048576", "d0 to d1048575, partitions p0 to p255"),
        ("nvme0n1", "names are like xvda, sdb3, hdc, d1p2, or a number"),
    ):
        with pytest.raises(VdevError, match=re.escape(words)):
            parse_vdev(name)


@pytest.mark.parametrize("devid", [-1, 1 << 31])
def test_a_number_beyond_a_c_int_is_no_virtual_disk(devid: int) -> None:
    with pytest.raises(VdevError, match=str(devid)):
        Vdev(devid)


def test_every_number_has_a_name_that_leads_back_to_it() -> None:
    encoded = [*range(3 << 8, 4 << 8), *range(8 << 8, 9 << 8), *range(22 << 8, 23 << 8), *range(202 << 8, 203 << 8)]
    extended = [
        *range(1 << 28, (1 << 28) + (40 << 8)),
        *range(1 << 28, 1 << 29, 4099),
        *range((1 << 29) - 256, 1 << 29),
    ]
    others = [*range(0, 1 << 16, 61), (1 << 29), (1 << 31) - 1]
    for devid in (*encoded, *extended, *others):
        vdev = Vdev(devid)
        assert parse_vdev(str(vdev)).devid == devid, vdev


def test_no_two_names_share_a_number() -> None:
    names = {str(Vdev(devid)) for devid in range(1 << 16)}
    assert len(names) == 1 << 16
    assert {"hda", "hdb1", "hdc", "hdd63", "sda", "sdp15", "xvda", "xvdp15", "0", "65535"} <= names
    assert not {"hde", "sdq", "xvdq"} & names


@pytest.mark.parametrize("first", [3 << 8, 8 << 8, 22 << 8, 202 << 8, 1 << 28])
def test_numbers_around_an_encoding_are_outside_it(first: int) -> None:
    size = {3 << 8: 2 << 6, 22 << 8: 2 << 6, 1 << 28: 1 << 28}.get(first, 1 << 8)
    assert Vdev(first).kind == Vdev(first + size - 1).kind is not None
    for devid in (first - 1, first + size):
        vdev = Vdev(devid)
        assert (vdev.kind, vdev.disk, vdev.partition, str(vdev)) == (None, None, None, str(devid))


def test_a_small_disk_in_the_large_encoding_is_named_by_its_number() -> None:
    vdev = Vdev(1 << 28 | 1)
    assert (vdev.kind, vdev.disk, vdev.partition, str(vdev)) == ("xvd", 0, 1, "268435457")


# Where libxl is not followed (vdev.py says why): d<N> alone; nothing, hd<number>, signs and blanks; numbers that wrap.
D_ALONE = re.compile(r"d(0x[0-9a-f]+|[0-9]+)", re.I)
ACCIDENTS = re.compile(r"|hd[0-9]*|.*[ +-].*|d.*([1-9][0-9]{9}|[1-7][0-7]{10}|[1-9a-f][0-9a-f]{8}).*", re.S | re.I)


def check(oracle: Libxl, name: str) -> None:
    theirs = oracle.devid(name)
    try:
        ours = parse_vdev(name).devid
    except VdevError:
        ours = None
    if ACCIDENTS.fullmatch(name):
        assert ours is None
    elif D_ALONE.fullmatch(name):
        assert theirs is None
        assert ours == oracle.devid(name + "p0")
    else:
        assert ours == theirs, name


@pytest.mark.parametrize("name", [*(name for name, *_ in KNOWN), *REFUSED])
def test_libxl_says_the_same_of_a_name(oracle: Libxl, name: str) -> None:
    check(oracle, name)


def test_libxl_makes_the_same_number_of_every_name(oracle: Libxl) -> None:
    encoded = [*range(3 << 8, 4 << 8), *range(8 << 8, 9 << 8), *range(22 << 8, 23 << 8), *range(202 << 8, 203 << 8)]
    for devid in (*encoded, *range(1 << 28, (1 << 28) + (40 << 8), 7), *range(1 << 28, 1 << 29, 80_021)):
        assert oracle.devid(str(Vdev(devid))) == devid


PIECES = st.sampled_from(
    (
        *("hd", "sd", "xvd", "d", "p", "a", "b", "p", "q", "z", "bgqcv", "bgqcw", "0x", "x", "X", "F", " ", "-", "é"),
        *("0", "1", "2", "3", "4", "7", "9", "15", "16", "63", "64", "255", "256", "07"),
        *("1048575", "1048576", "268435456", "2147483647"),
    )
)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=6).map("".join))
def test_libxl_says_the_same_of_anything_like_a_name(oracle: Libxl, name: str) -> None:
    check(oracle, name)
