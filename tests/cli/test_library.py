"""The library for scripts in shell, as `vbdkit install` puts it in place and `vbdkit uninstall` takes it away."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, Run
from tests.host import Host
from tests.images import losetup
from tests.need import need_program
from vbdkit.cli.stub import is_ours

STOCK = "# the library of a Xen package\n"
# What Xen's vif scripts source, which is none of ours.
OTHERS = ["xen-hotplug-common.sh", "xen-script-common.sh", "xen-network-common.sh", "locking.sh", "logging.sh"]


@pytest.fixture
def stock(scripts: Path) -> Path:
    """The folder as a Xen package leaves it."""
    for name in ["block-common.sh", "vif-common.sh", "hotplugpath.sh", *OTHERS]:
        (scripts / name).write_text(STOCK + name)
    (scripts / "block").write_text("#!/bin/sh\n")
    return scripts


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mode) for path in folder.iterdir()}


def test_it_takes_the_place_of_xens_and_of_nothing_else(command: Run, stock: Path) -> None:
    before = contents(stock)
    done = command("install", "--scripts-dir", stock, "--python", PYTHON)
    assert done.returncode == 0, done.stderr
    after = contents(stock)
    assert is_ours(stock / "block-common.sh")
    assert stat.S_IMODE(after["block-common.sh"][1]) == 0o644
    assert set(after) - set(before) == {"block.before-vbdkit", "block-common.sh.before-vbdkit"}
    assert {name for name in before if before[name] != after[name]} == {"block", "block-common.sh"}
    assert "kept" in done.stdout
    done = command("uninstall", "--scripts-dir", stock)
    assert done.returncode == 0, done.stderr
    assert contents(stock) == before


def test_a_library_that_somebody_put_back_stays(command: Run, stock: Path) -> None:
    """A package's update does that; what vbdkit kept is still there then."""
    command("install", "--scripts-dir", stock, "--python", PYTHON)
    (stock / "block-common.sh").write_text("newer")
    done = command("uninstall", "--scripts-dir", stock)
    assert done.returncode == 0
    assert (stock / "block-common.sh").read_text() == "newer"
    assert (stock / "block").read_text() == "#!/bin/sh\n"


def test_a_folder_in_its_place(command: Run, scripts: Path) -> None:
    (scripts / "block-common.sh").mkdir()
    done = command("install", "--scripts-dir", scripts, "--python", PYTHON)
    assert done.returncode == 1
    assert "block-common.sh is neither a file nor a link" in done.stderr
    assert list(scripts.iterdir()) == [scripts / "block-common.sh"]


def test_what_is_installed_passes_shellcheck(command: Run, scripts: Path) -> None:
    command("install", "--scripts-dir", scripts, "--python", PYTHON, "--run-dir", scripts / "it's a \\ name")
    done = subprocess.run([need_program("shellcheck"), scripts / "block-common.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_an_installed_one_works_without_any_other_file(command: Run, scripts: Path, host: Host, image: Path) -> None:
    """Not even the commands of Xen: only a store."""
    arguments = ["--scripts-dir", scripts, "--python", PYTHON, "--run-dir", host.run_dir, "--lock-dir", host.lock_dir]
    assert command("install", *arguments).returncode == 0
    device = losetup("--find", "--show", str(image))
    script = scripts / "block-mine"
    script.write_text(
        '#!/bin/sh\ndir=$(dirname "$0")\n. "$dir/block-common.sh"\n'
        '[ "$command" = remove ] || write_dev "$(xenstore_read "$XENBUS_PATH/params")"\n'
    )
    script.chmod(0o755)
    host.script = script
    try:
        disk, other = host.disk(5, device), host.disk(6, device)
        done = disk.add()
        assert (done.status, done.outcome) == (0, b"connected"), done.output
        assert other.add().outcome == b"busy"
        assert disk.remove().status == 0
        assert sorted(os.listdir(scripts)) == ["block", "block-common.sh", "block-mine"]
    finally:
        losetup("-d", device)
