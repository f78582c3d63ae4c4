"""Names that are swapped, and strange things where records and locks belong: nothing waits, nothing else is touched."""

import multiprocessing
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.host import Disk, Host
from tests.hostile.judge import attached, backing, examples, judge
from tests.images import losetup, make_image
from vbdkit.platform.linux import loop

ROUNDS = examples(10)


def _flip(link: Path, targets: list[Path], ready: Event, stop: Event) -> None:
    """Point ``link`` at one target after another, as fast as one can; there always is one."""
    other = link.with_suffix(".flip")
    while not stop.is_set():
        for target in targets:
            os.symlink(target, other)
            os.rename(other, link)
        ready.set()


@contextmanager
def flipping(link: Path, *targets: Path) -> Iterator[None]:
    """Have another process do that for a while."""
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_flip, args=(link, list(targets), ready, stop))
    process.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        stop.set()
        process.join(10)
        assert process.exitcode == 0


def recorded(host: Host, disk: Disk) -> tuple[int, int]:
    """The file that a record names: (st_dev, st_ino)."""
    lines = (host.run_dir / f"vbd-{disk.domid}-{disk.devid}").read_text().splitlines()
    dev, ino = next(line for line in lines if line.startswith("file ")).split()[1:]
    return int(dev), int(ino)


def test_a_link_that_flips_between_two_files(host: Host, tmp_path: Path) -> None:
    """What was checked and recorded is what the guest gets; the guest that has one of the files keeps it alone."""
    files = [make_image(tmp_path / name) for name in ("taken.img", "free.img")]
    identities = [(file.stat().st_dev, file.stat().st_ino) for file in files]
    owner = host.disk(5, files[0])
    assert owner.add().status == 0
    disk = host.disk(6, tmp_path / "link")
    ends: set[int] = set()
    with flipping(tmp_path / "link", *files):
        # Go on until both targets were met.
        for _ in range(20 * ROUNDS):
            if ends == {0, 1}:
                break
            result = disk.add()
            if result.status == 0:
                published = loop.query(int(result.nodes["physical-device"].partition(b":")[2], 16))
                assert published is not None
                assert published.backing == recorded(host, disk) == identities[1], "never the one that is taken"
                assert published.path == result.nodes["physical-device-path"]
                assert backing(result) == str(files[1])
            else:
                assert result.outcome == b"busy"
                assert f"{tmp_path}/link is in use by guest 5" in result.error
            ends.add(result.status)
            assert disk.remove().status == 0
    assert ends == {0, 1}
    assert owner.remove().status == 0
    assert attached(host, []) == []


@pytest.mark.parametrize("other", ["fifo", "directory", "device", "nothing"])
def test_a_link_that_flips_between_a_file_and_something_else(host: Host, tmp_path: Path, other: str) -> None:
    image, thing = make_image(tmp_path / "disk.img"), tmp_path / other
    device = ""
    if other == "fifo":
        os.mkfifo(thing)
    elif other == "directory":
        thing.mkdir()
    elif other == "device":
        device = losetup("--find", "--show", str(make_image(tmp_path / "device.img")))
        thing.symlink_to(device)
    disk = host.disk(5, tmp_path / "link")
    with flipping(tmp_path / "link", image, thing):
        for _ in range(ROUNDS):
            result = disk.run("add", timeout=20)
            if result.status == 1:
                says = (
                    "changed while it was opened",
                    "is a FIFO",
                    "is a directory",
                    "does not exist",
                    "cannot be opened",
                    "Stale file handle",
                )
                assert any(text in result.error for text in says), result
            elif result.nodes["physical-device-path"] == os.fsencode(tmp_path / "link"):
                assert "node" not in result.nodes
                assert result.nodes["physical-device"] == b"7:%x" % int(device[9:])
            else:
                assert backing(result) == str(image)
            assert disk.remove().status == 0
    if device:
        losetup("-d", device)
    assert attached(host, []) == []


# What may stand where a lock, a record or their folders belong. None of it is followed, waited for or overwritten.

PRECIOUS = b"precious\n" * 100


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o666)


def directory(path: Path) -> None:
    path.mkdir()
    os.chown(path, 65534, 65534)


def link_to_a_file(path: Path) -> None:
    path.symlink_to(path.parent / "precious")


def link_to_a_folder(path: Path) -> None:
    (elsewhere := path.parent / "elsewhere").mkdir()
    path.symlink_to(elsewhere)


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def foreign_file(path: Path) -> None:
    path.write_bytes(PRECIOUS)
    os.chown(path, 65534, 65534)
    path.chmod(0o666)


def full_device(path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))


THINGS = [fifo, directory, link_to_a_file, link_to_a_folder, link_to_nowhere, link_to_itself, foreign_file, full_device]


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["block", "vbd-5-51712", "vbd-5-51712.new", "lock", "run"])
def test_something_else_in_a_place_of_its_own(
    host: Host, image: Path, name: str, make: "Callable[[Path], None]"
) -> None:
    """It works all the same, or it says in one sentence what is in the way; then nothing is attached."""
    folders = {"block": host.lock_dir, "lock": host.directory, "run": host.directory}
    folder = folders.get(name, host.run_dir)
    for needed in (host.lock_dir, host.run_dir):
        if name not in ("lock", "run"):
            needed.mkdir()
    precious = folder / "precious"
    precious.write_bytes(PRECIOUS)
    make(folder / name)
    before = stat_of(folder / name)
    disk = host.disk(5, image)
    added = disk.run("add", timeout=20)
    assert added.status in (0, 1)
    if added.status == 1:
        assert str(folder / name).removesuffix(".new") in added.error, "the thing is named"
        assert added.error.isprintable()
        assert "itself failed" not in added.error
        assert attached(host, []) == []
        if not name.endswith(".new"):
            assert stat_of(folder / name) == before, "what was in the way is there still"
    else:
        assert attached(host) == [added.nodes["node"].decode()]
    assert precious.read_bytes() == PRECIOUS
    removed = disk.run("remove", timeout=20)
    if added.status == 0:
        assert removed.status == 0
    assert attached(host, []) == []
    assert precious.read_bytes() == PRECIOUS
    assert stat.S_IMODE(precious.stat().st_mode) & 0o777 == 0o644


def stat_of(path: Path) -> tuple[int, int, int, int]:
    """What tells a thing from another that took its place."""
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_uid, status.st_size


def test_a_forged_record_releases_nothing_of_others(host: Host, image: Path, tmp_path: Path) -> None:
    """Whoever could write one: only a device that the kernel knows by this vbd's name, on that very file, goes."""
    other = host.disk(6, image)
    assert other.add().status == 0
    stranger = losetup("--find", "--show", str(make_image(tmp_path / "stranger.img")))
    kept = attached(host)
    for target, number in ((image, other.nodes()["node"][9:].decode()), (tmp_path / "stranger.img", stranger[9:])):
        status = target.stat()
        (host.run_dir / "vbd-5-51712").write_text(
            f"vbdkit 1\ndatapath file\ntarget {target}\nmode w\nfile {status.st_dev} {status.st_ino}\nloop {number}\n"
        )
        disk = Disk(host, "vbd", 5, 51712)
        result = disk.remove()
        assert (result.status, result.output) == (0, "")
        assert attached(host, kept) == kept
    losetup("-d", stranger)
    assert other.remove().status == 0


@pytest.mark.parametrize("datapath", ["os", "../file", "file.", "__init__", "", "device", "file\x1b[2J"])
def test_a_forged_record_loads_no_code(host: Host, datapath: str) -> None:
    host.run_dir.mkdir()
    (host.run_dir / "vbd-5-51712").write_text(f"vbdkit 1\ndatapath {datapath}\n")
    disk = host.disk(5, "/nowhere")
    result = disk.remove()
    if datapath == "device":
        assert (result.status, result.output) == (0, "")
        return
    assert result.status == 1
    assert "there is no kind of storage named" in result.error
    judge(disk, result, "remove")
