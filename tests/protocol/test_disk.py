"""xl's disk specifications mean what xl-disk-configuration(5) says. What the real parser says: test_disk_oracle.py."""

import json

import pytest

from vbdkit.protocol import Disk, DiskError, disk_json, parse_disk

# Groups of specifications that the man page calls equivalent, or that follow from it, and what they are.
WEB = Disk(pdev_path="/dev/vg/web", vdev="hda", format="raw", readwrite=True)
ISO = Disk(pdev_path="/root/i.iso", vdev="hdc", format="raw", is_cdrom=True, removable=True)
EMPTY = Disk(pdev_path="", vdev="hdc", format="empty", is_cdrom=True, removable=True)
EQUIVALENT = [
    (WEB, ["/dev/vg/web,,hda"]),
    (WEB, ["/dev/vg/web,raw,hda,rw"]),
    (WEB, ["format=raw, vdev=hda, access=rw, target=/dev/vg/web"]),
    (WEB, ["raw:/dev/vg/web,hda,w"]),
    (WEB, ["phy:/dev/vg/web,hda,w"]),
    (WEB, ["tap:aio:/dev/vg/web,ioemu:hda:disk,w"]),
    (WEB, [" /dev/vg/web,\traw,\n hda"]),
    (WEB, [",,hda,target=/dev/vg/web"]),
    (WEB, ["vdev=hda,/dev/vg/web"]),
    (WEB, ["/dev/vg/web", "raw", "hda", "w"]),
    (WEB, ["vdev=hda", "target=/dev/vg/web"]),
    (ISO, ["/root/i.iso,,hdc,cdrom"]),
    (ISO, ["/root/i.iso,,hdc,,cdrom"]),
    (ISO, ["/root/i.iso,raw,hdc,devtype=cdrom"]),
    (ISO, ["format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/i.iso"]),
    (ISO, ["raw:/root/i.iso,hdc:cdrom,ro"]),
    (ISO, ["/root/i.iso,,hdc,rw,cdrom"]),
    (EMPTY, [",hdc:cdrom,r"]),
    (EMPTY, [",,hdc,cdrom"]),
    (EMPTY, ["devtype=cdrom,vdev=hdc,format=qcow2,target="]),
]


@pytest.mark.parametrize(
    ("disk", "texts"), EQUIVALENT, ids=lambda one: " / ".join(one) if isinstance(one, list) else ""
)
def test_equivalent_specifications_are_one_disk(disk: Disk, texts: list[str]) -> None:
    assert parse_disk(*texts) == disk


@pytest.mark.parametrize("text", ["cdrom,vdev=hdc", "vdev=hdc,devtype=cdrom"])
def test_a_cdrom_drive_may_have_no_target_at_all(text: str) -> None:
    disk = parse_disk(text)
    assert (disk.pdev_path, disk.format, disk.is_cdrom, disk.readwrite) == (None, "empty", True, False)


@pytest.mark.parametrize(
    ("parameter", "field", "value"),
    [
        ("format=qcow2", "format", "qcow2"),
        ("format=", "format", "raw"),
        ("access=r", "readwrite", False),
        ("access=ro", "readwrite", False),
        ("access=w", "readwrite", True),
        ("access=", "readwrite", True),
        ("backend=storage", "backend_domname", "storage"),
        ("backendtype=phy", "backend", "phy"),
        ("backendtype=qdisk", "backend", "qdisk"),
        ("backendtype=tap", "backend", "tap"),
        ("backendtype=standalone", "backend", "standalone"),
        ("script=block-rbd", "script", "block-rbd"),
        ("script=/opt/x", "script", "/opt/x"),
        ("direct-io-safe", "direct_io_safe", True),
        ("discard", "discard_enable", True),
        ("no-discard", "discard_enable", False),
        ("trusted", "trusted", True),
        ("untrusted", "trusted", False),
        ("specification=xen", "specification", "xen"),
        ("specification=virtio", "specification", "virtio"),
        ("colo", "colo_enable", True),
        ("no-colo", "colo_enable", False),
        ("colo-host=10.0.0.1", "colo_host", "10.0.0.1"),
        ("colo-port=9999", "colo_port", 9999),
        ("colo-export=qdisk1", "colo_export", "qdisk1"),
        ("active-disk=/a", "active_disk", "/a"),
        ("hidden-disk=/h", "hidden_disk", "/h"),
        ("devtype=cdrom", "is_cdrom", True),
        ("devtype=disk", "is_cdrom", False),
    ],
)
def test_a_parameter_sets_its_field(parameter: str, field: str, value: object) -> None:
    for text in (f"vdev=hda,{parameter},target=x", f"{parameter}, vdev=hda, x"):
        assert getattr(parse_disk(text), field) == value


@pytest.mark.parametrize(
    ("prefix", "field", "value"),
    [
        *((f"{name}:", "format", name) for name in ("raw", "qcow", "qcow2", "vhd")),
        *((f"{name}:", "script", f"block-{name}") for name in ("iscsi", "nbd", "enbd", "drbd")),
        *((f"{name}:", "script", None) for name in ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")),
        ("tap:qcow2:", "format", "qcow2"),
        ("tap2:vhd:", "format", "vhd"),
    ],
)
def test_a_deprecated_prefix_is_taken_off_and_means_what_it_meant(prefix: str, field: str, value: object) -> None:
    disk = parse_disk(f"{prefix}x:1,xvda,r")
    assert (disk.pdev_path, disk.vdev, disk.readwrite) == ("x:1", "xvda", False)
    assert getattr(disk, field) == value


@pytest.mark.parametrize("target", ["a,b=c:d , e", "file:x", "vdev=hdb", "=", " x ", "cdrom"])
def test_target_takes_the_rest_as_it_is(target: str) -> None:
    assert parse_disk(f"vdev=hda,target={target}").pdev_path == target


def test_undecodable_bytes_of_a_target_are_kept() -> None:
    assert parse_disk("/srv/\udcff\u00e9.img,,hda").pdev_path == "/srv/\udcff\u00e9.img"


# What xl prints after "config parsing error in disk specification: ".
REFUSED = [
    ("", ["no vdev specified in `'"]),
    ("/dev/x", ["no vdev specified in `/dev/x'"]),
    ("vdev=hda", ["no target specified (and device not removable) in `vdev=hda'"]),
    ("a,,hda,w,x", ["too many positional parameters: near `x' in `a,,hda,w,x'"]),
    ("a,hda,w", ["unknown value for format: near `hda' in `a,hda,w'"]),
    ("a,,hda,w!", ["unknown value for access: near `w!' in `a,,hda,w!'"]),
    ("a,,hda,backendtype=file", ["unknown value for backendtype: near `file' in `a,,hda,backendtype=file'"]),
    ("a,,hda,specification=x", ["unknown value for specification: near `x' in `a,,hda,specification=x'"]),
    ("a,,hda,devtype=x,cdrom", ["unknown value for type: near `devtype=x,' in `a,,hda,devtype=x,cdrom'"]),
    ("a,,hda:floppy", ["unknown deprecated type: near `floppy' in `a,,hda:floppy'"]),
    ("a,,hda,colo-port=x", ["unknown value for colo_port: near `x' in `a,,hda,colo-port=x'"]),
    ("a,,hda,vdev=hdb", ["vdev respecified: near `hdb' in `a,,hda,vdev=hdb'"]),
    ("a,,hda,target=b", ["target respecified: near `b' in `a,,hda,target=b'"]),
    ("a,raw,hda,format=vhd", ["format respecified: near `vhd' in `a,raw,hda,format=vhd'"]),
    ("iscsi:a,hda,w,script=b", ["script respecified: near `b' in `iscsi:a,hda,w,script=b'"]),
    (
        "a,,hda,backendtype=phy,backendtype=tap",
        ["backend respecified: near `tap' in `a,,hda,backendtype=phy,backendtype=tap'"],
    ),
    ("http://x,,hda", ["unknown deprecated disk prefix: near `http:' in `http://x,,hda'"]),
    ("a,,hda,backend-type=phy", ["unknown parameter: near `backend-type=p' in `a,,hda,backend-type=phy'"]),
    ("/x=y,,hda", ["bad disk syntax: near `=y,,hda' in `/x=y,,hda'"]),
    (
        "format=x,access=y,vdev=a,vdev=b",
        [
            "unknown value for format: near `x' in `format=x,access=y,vdev=a,vdev=b'",
            "unknown value for access: near `y' in `format=x,access=y,vdev=a,vdev=b'",
            "vdev respecified: near `b' in `format=x,access=y,vdev=a,vdev=b'",
        ],
    ),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_refusal_has_the_words_of_xl(text: str, words: list[str]) -> None:
    with pytest.raises(DiskError) as caught:
        parse_disk(text)
    assert list(caught.value.words) == words
    assert str(caught.value) == "config parsing error in disk specification: " + "; ".join(words)


def test_a_failed_part_ends_the_reading() -> None:
    with pytest.raises(DiskError) as caught:
        parse_disk("a", "tar", "hda", "foo=1")
    assert caught.value.words == ("unknown value for format: near `tar' in `tar'",)


def test_the_json_has_libxls_names_and_types_and_leaves_out_what_is_unset() -> None:
    disk = parse_disk('a\x0b"\\,,hda,direct-io-safe,discard,no-colo,untrusted')
    text = disk_json(disk)
    assert list(json.loads(text).items()) == [
        ("pdev_path", 'a\x0b"\\'),
        ("vdev", "hda"),
        ("format", "raw"),
        ("readwrite", 1),
        ("direct_io_safe", True),
        ("discard_enable", "True"),
        ("colo_enable", "False"),
        ("trusted", "False"),
    ]
    assert text.startswith('{\n    "pdev_path": "a\\u000B\\"\\\\",\n')
    assert text.endswith('"trusted": "False"\n}\n')
