"""`vbdkit attach --dry-run` prints what `xl -N block-attach` prints."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, run_command
from tests.libxl import xl
from tests.need import need_root


@pytest.mark.parametrize(
    "parts",
    [
        ["/dev/vg/web,,xvda"],
        ["/srv/install.iso", "raw", "hdc", "cdrom"],
        ["vdev=xvdb, script=block-rbd, backend=storage, x"],
        ['vdev=d1p2,no-discard,direct-io-safe,target=/srv/a,b \u00e9\udcff"\\.img'],
        ["a=b=c"],
        [""],
        ["a,,hda", "foo=1", "vdev=x"],
    ],
)
def test_it_prints_what_xl_prints(command: Run, parts: list[str]) -> None:
    ours = command("attach", "--dry-run", "5", *parts, errors="surrogateescape")
    theirs = xl("-N", "block-attach", "5", *parts)
    assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode)
    if ours.returncode:
        told = "config parsing error in disk specification: "
        words = [line.partition(told)[2] for line in theirs.stderr.splitlines() if told in line]
        assert ours.stderr.splitlines()[0] == f"vbdkit: {told}{'; '.join(words)}"
    else:
        assert ours.stderr == ""


def test_a_disk_that_no_guest_could_have_is_shown_and_refused(command: Run) -> None:
    done = command("attach", "--dry-run", "5", "/dev/vg/web,,hde")
    assert json.loads(done.stdout.removeprefix("disk: "))["vdev"] == "hde"
    assert done.returncode == 1
    assert done.stderr == (
        "vbdkit: no guest could have this disk: hde is beyond the virtual disks that there are: "
        "hda to hdd, partitions 1 to 63\n"
    )


def test_a_specification_with_an_empty_name_is_shown_and_refused(command: Run) -> None:
    done = command("attach", "--dry-run", "5", "a,,,w")
    assert '"vdev": ""' in done.stdout
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("domid", ["32752", "", "999999999999"])
def test_a_domain_that_is_none_is_wrong_use(command: Run, domid: str) -> None:
    done = command("attach", "--dry-run", "--", domid, "a,,hda")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no domain (numbers go from 0 to 32751" in done.stderr


@pytest.mark.parametrize("arguments", [["--dry-run", "5"], ["--dry-run"], ["--dry", "5", "a,,hda"]])
def test_what_is_missing_or_unknown_is_wrong_use(command: Run, arguments: list[str]) -> None:
    done = command("attach", *arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_it_needs_neither_root_nor_xen_nor_the_target(package: Path) -> None:
    need_root()  # to become somebody else
    done = run_command(
        package, "attach", "--dry-run", "5", "/nowhere/x,,xvda", user=65534, group=65534, extra_groups=[]
    )
    assert (done.returncode, done.stderr) == (0, "")
