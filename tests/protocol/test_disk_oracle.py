"""Debian's own xl and libxlutil read the same disk in every specification, and refuse with the same words.

Two texts are kept from them: ``trusted`` (in their man page, not in their parser), and a line feed straight after
``=``, which their lexer copies to stdout.
"""

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.libxl import BEFORE, Libxl, xl
from tests.protocol.test_disk import EQUIVALENT, REFUSED
from vbdkit.protocol import Disk, DiskError, disk_json, parse_disk

SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])

# The corners: blanks, empty values, prefixes at odd places, things said twice, characters of all kinds.
CORNERS = """
,|,,|,,,|,,,,|a|a,|a,raw|a,raw,hda,|a,,hda,,|a,,hda,,r|a,,hda,r |a, raw,hda|a,raw ,hda|  a,,hda|a ,,hda|a,,hda , r
cdrom |vdev=hda,cdrom |cdrom=1|vdev=hda,cdrom=|vdev=hda,a=|vdev=hda,a=,|=|==|,=|a=b=c|foo=|foo=,|foo=1
foo=12,vdev=hda|Foo=1|foo_bar=1|foo-bar=1|1=2|x y=2,,hda|vdev=,vdev=hdb,x|vdev=hda,vdev=|a,,hda,backend=,backend=b
a,,hda,script=,script=s|format=raw,format=raw,a,hda|format=,format=qcow,a,hda|format=empty,a,hda|a,empty,hda
a,unknown,hda|a,QCOW2,hda|qed:a,,hda|access=r,access=,a,,hda|access=,a,,hda,r|access=r,a,,hda,w|a,,hda,w,access=r
a,,hda,backendtype=|a,,hda,backendtype=unknown|a,,hda,backendtype=phy,backendtype=phy|a,,hda,specification=
a,,hda,specification=xen,specification=virtio|a,,hda,colo-port=|a,,hda,colo-port=-1|a,,hda,colo-port=0x10
a,,hda,colo-port=010|a,,hda,colo-port=12x|a,,hda,colo-port= 12|a,,hda,colo-port=99999999999
a,,hda,colo-port=4294967296|a,,hda,colo-port=99999999999999999999|a,,hda,colo-port=1,colo-port=2
a,,hda,discard,no-discard|a,,hda,discard=1|a,,hda,no-direct-io-safe|a,,hda,colo,no-colo|a,,hda,colo-restore
a,,hda,transport=mmio|a,,hda,devtype=|a,,hda,devtype=cdrom,devtype=disk|,,hda,cdrom,devtype=disk|a,,hda:|a,,hda:disk
a,,hda:cdrom:cdrom|a,,x:y:disk|vdev=hda:cdrom,a|,hda:disk,w|,hda,w|,hda:,r|,hda:cdrom |,hda:cdrom,|,vdev=,:
format=raw,,hda:cdrom,r|vdev=a,,hda:disk|,phy:hda:cdrom,r|phy:,hda:cdrom,r|,phy:,hda|file:a|file:a,hda
file:a,hda,w,x|file:a,,hda,w|file:a,raw,hda,w|file:a,vdev=hda|raw:a,format=raw,vdev=hda|raw:a,format=qcow,vdev=hda
qcow:raw:a,hda,w|raw:raw:a,hda,w|file: a,hda|file :a,hda|FILE:a,hda,w|foo:a,hda,w|foo:,hda|foo:|foo: a|foo1:b,,hda
foo1:/,,hda|foo-1:/,,hda|tap:foo:a,hda,w|tap:foo:/a,hda,w|vdev=hda,file:a|script:x,hda,w|script:block-x:y,,hda
rbd:x,,hda|ioemu:hda|a,ioemu:hda,w|iscsi:a,nbd:hda|target=x,vdev=hda|vdev=hda,target=,|vdev=hda,target=x,,
vdev=hda, target= x|vdev=hda,target|a,,hda,domain=x|a,,hda,é|a,,hda,foo=é,vdev=b|é,,hdü|a,,hda,script=\udcff
"""


def read(*texts: str) -> tuple[Disk | None, list[str]]:
    """What we make of it: the disk, or what is wrong."""
    try:
        return parse_disk(*texts), []
    except DiskError as error:
        return None, list(error.words)


def check(oracle: Libxl, *texts: str) -> Disk | None:
    """Compare; the disk where both take it."""
    disk, words = read(*texts)
    assert (disk and disk_json(disk), words) == oracle.disk(*texts)
    return disk


@pytest.mark.parametrize("text", re.split(r"[|\n]", CORNERS.strip()))
def test_the_corners(oracle: Libxl, text: str) -> None:
    check(oracle, text)
    check(oracle, *text.split(","))


@pytest.mark.parametrize("character", [chr(number) for number in range(1, 256)] + ["\u20ac", "\udc80", "\udcff"])
def test_every_character_at_every_place(oracle: Libxl, character: str) -> None:
    for text in (
        "{}a,,hda",
        "a{}b,,hda",
        "a,{},hda",
        "a,,h{}da",
        "a,,hda,{}",
        "a,,hda,w,{}",
        "f{}le:a,hda",
        "cd{}rom,,hda",
    ):
        check(oracle, text.format(character))
    for text in ("vdev=hda,target={}", "vdev=hda,target=x{}y", "a,,hda,script={}x", "fo{}o=1,,hda", "foo:{}x,,hda"):
        if character != "\n" or "={}" not in text:
            check(oracle, text.format(character))


def test_what_the_man_page_calls_equivalent_is_so_for_libxl_too(oracle: Libxl) -> None:
    for disk, texts in EQUIVALENT:
        assert check(oracle, *texts) == disk


def test_the_refusals_that_we_expect_are_libxls(oracle: Libxl) -> None:
    for text, words in REFUSED:
        assert oracle.disk(text) == (None, words)


# Specifications that are nearly right: parameters in any order, here and there one twice, or with a slip.
def listed(text: str) -> list[str]:
    return text.split()


VALUES = {
    "format": listed("raw qcow qcow2 vhd qed empty aio"),
    "access": listed("r ro w rw w!"),
    "vdev": listed("hda xvda1 sdb d1p2 51712 hdc:cdrom"),
    "backendtype": listed("phy qdisk tap standalone file"),
    "specification": listed("xen virtio kvm"),
    "devtype": listed("cdrom disk floppy"),
    "colo-port": listed("1 0 x 65535 -4"),
    **{name: listed("a /b/c x:1") for name in listed("backend script colo-host colo-export active-disk hidden-disk")},
}
FLAGS = listed("cdrom direct-io-safe discard no-discard colo no-colo")
PREFIXES = listed("raw: qcow: qcow2: vhd: iscsi: nbd: enbd: drbd: tap: tap2: tapdisk: aio: ioemu: file: phy:")
SLIPS = st.sampled_from(["", *listed("foo=1 foo= floppy cdrom=1 qed: foo: script:x = : hdb w")])
PARAMETER = st.sampled_from(FLAGS) | st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.sampled_from([*VALUES[name], ""]).map(lambda value: f"{name}={value}")
)
PREFIXED = st.lists(st.sampled_from(PREFIXES), max_size=2).map("".join)
TARGET = st.builds(str.__add__, PREFIXED, st.sampled_from(["/dev/x", "a:b", "h/i", ""]))
VDEV = st.sampled_from(["hda", "xvdb", "hdc:cdrom", "hda:disk", ""])
ROW = (
    st.tuples(TARGET)
    | st.tuples(TARGET, VDEV)
    | st.tuples(TARGET, st.sampled_from(["", "raw", "vhd", "empty"]), VDEV)
    | st.tuples(TARGET, st.sampled_from(["", "qed"]), VDEV, st.sampled_from(["", "r", "w"]))
)


@st.composite
def specifications(draw: st.DrawFn) -> str:
    parameters = list(draw(ROW))
    others = draw(st.lists(PARAMETER, max_size=3)) + draw(st.just([]) | st.just([]) | st.lists(SLIPS, max_size=1))
    for other in others:
        parameters.insert(draw(st.integers(0, len(parameters))), other)
    if draw(st.integers(0, 3)) == 0:
        parameters.append("target=" + draw(st.text("ab,=: \u00e9/", max_size=6)))
    blank = draw(st.sampled_from(["", "", " ", "\t", "\n "]))
    return ",".join(blank + parameter for parameter in parameters)


@SETTINGS
@given(specifications())
def test_specifications_that_are_nearly_right(oracle: Libxl, text: str) -> None:
    check(oracle, text)


@SETTINGS
@given(st.lists(specifications() | PARAMETER | TARGET | SLIPS, min_size=1, max_size=4))
def test_specifications_in_parts(oracle: Libxl, texts: list[str]) -> None:
    check(oracle, *texts)


PIECES = st.sampled_from(
    [f"{name}=" for name in (*VALUES, "target", "foo")]
    + listed('cdrom disk discard colo raw qcow2 vhd r w hda hdc:cdrom foo: file: raw: nbd: tap: a /x X 1 _ - é ! " \\')
    + [",", ",", ",", "=", ":", " ", "\t", "\n", "\x01", "\x1f"]
)


@SETTINGS
@given(st.lists(PIECES, max_size=9).map("".join))
def test_anything(oracle: Libxl, text: str) -> None:
    assume("=\n" not in text)
    check(oracle, text)


def test_many_of_them_are_disks_and_many_are_not() -> None:
    """The comparison is worth little otherwise."""
    verdicts = []

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(specifications())
    def note(text: str) -> None:
        verdicts.append(read(text)[0] is not None)

    note()
    assert len(verdicts) / 10 < sum(verdicts) < len(verdicts) * 9 / 10


@pytest.mark.parametrize(
    "texts",
    [
        ["/dev/vg/web,,xvda"],
        ["/srv/i.iso", "raw", "hdc", "cdrom"],
        ["vdev=xvda,backend=storage,script=block-rbd,no-discard,direct-io-safe,colo,colo-port=7,target=pool/image"],
        ["a=b=c"],
        ["a,,hda,w,x"],
        [""],
    ],
)
def test_xl_itself_prints_it_so(texts: list[str]) -> None:
    done = xl("-N", "block-attach", "5", *texts)
    disk, words = read(*texts)
    assert done.stdout == (f"disk: {disk_json(disk)}\n" if disk else "")
    assert [line for line in done.stderr.splitlines() if line.startswith(BEFORE)] == [BEFORE + word for word in words]
    assert done.returncode == (0 if disk else 1)


def test_every_field_of_libxl_is_there_and_in_its_order(oracle: Libxl) -> None:
    given = Disk(
        backend_domid=4,
        backend_domname="b",
        pdev_path="p",
        vdev="v",
        backend="phy",
        format="raw",
        script="s",
        removable=True,
        readwrite=True,
        is_cdrom=True,
        direct_io_safe=True,
        discard_enable=True,
        specification="virtio",
        transport="mmio",
        irq=3,
        base=5,
        colo_enable=False,
        colo_restore_enable=True,
        colo_host="h",
        colo_port=7,
        colo_export="e",
        active_disk="a",
        hidden_disk="d",
        trusted=False,
    )
    assert oracle.rewritten(disk_json(given)) == disk_json(given)
