"""block-common.sh: every name that scripts in the field use keeps its meaning, in every shell (S1, S2)."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.host import Host
from tests.images import losetup, make_image
from tests.need import need_program
from tests.shell.conftest import Scripts

LIBRARY = Path(__file__).parents[2] / "src/vbdkit/scripts/shell/block-common.sh"
NAMES = [
    *("findCommand", "evalVariables", "write_dev", "success", "fatal", "ebusy", "xenstore_read"),
    *("xenstore_read_default", "xenstore_write", "_xenstore_write", "do_or_die", "do_without_error", "sigerr"),
    *("claim_lock", "release_lock", "canonicalise_mode", "same_vm", "device_major_minor", "call_hooks", "log"),
    *(
        "check_sharing",
        "check_device_sharing",
        "check_file_sharing",
        "do_ebusy",
        "expand_dev",
        "find_free_loopback_dev",
    ),
]


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([need_program("shellcheck"), LIBRARY], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def out(scripts: Scripts, body: str, command: str = "add") -> list[str]:
    """What a script writes to the file that $out names, as lines; it must end well."""
    file = scripts.host.directory / "out"
    disk = scripts.disk(f"exec 3>'{file}'\n{body}")
    done = disk.run(command)
    assert done.status == 0, done.output
    return file.read_text().splitlines()


def test_every_name_is_there(scripts: Scripts) -> None:
    body = "\n".join(f"type {name} >/dev/null 2>&1 && echo {name} >&3" for name in NAMES)
    assert out(scripts, body) == NAMES


def test_what_a_script_finds_set(scripts: Scripts) -> None:
    names = '"$command" "$XENBUS_PATH" "$XENBUS_TYPE" "$XENBUS_BASE_PATH" "$dir" "$XEN_SCRIPT_DIR" "$LANG"'
    body = f'printf "%s\\n" {names} >&3'
    expected = ["add", "backend/vbd/5/51712", "vbd", "backend", str(scripts.folder), str(scripts.folder), "POSIX"]
    assert out(scripts, body) == expected
    assert out(scripts, 'echo "$-${LC_ALL-unset}" | tr -dc "e[:upper:]unst" >&3')[0].startswith("e")


def test_the_folders_of_this_hosts_xen(scripts: Scripts) -> None:
    """What hotplugpath.sh says, and Xen's own defaults where there is none: nothing of Xen is needed."""
    path = scripts.folder / "hotplugpath.sh"
    path.write_text(path.read_text() + "libdir=/opt/xen/lib\nXEN_CONFIG_DIR=/opt/xen/etc\n")
    body = 'printf "%s\n" "${PATH%%:*}" "${LD_LIBRARY_PATH##*:}" "$XEN_CONFIG_DIR" "$XEN_LOG_DIR" >&3'
    assert out(scripts, body) == [str(scripts.programs), "/opt/xen/lib", "/opt/xen/etc", str(scripts.log.parent)]
    path.unlink()
    assert out(scripts, body) == ["/usr/bin", "", "/etc/xen", "/var/log/xen"]
    assert sorted(path.name for path in scripts.folder.iterdir()) == ["block-common.sh", "block-test"]


def test_find_command_and_eval_variables(scripts: Scripts) -> None:
    body = (
        'findCommand a=1 b=2 remove late; echo "$command" >&3; evalVariables x=7 =no add "y=\'a b\'"; echo "$x,$y" >&3'
    )
    assert out(scripts, body) == ["remove", "7,a b"]


@pytest.mark.parametrize("word", ["change", "", "online"])
def test_only_add_and_remove_are_commands(scripts: Scripts, word: str) -> None:
    disk = scripts.disk("write_dev /dev/null")
    argv = [str(scripts.host.script), *([word] if word else [])]
    env = scripts.host.environment() | {"XENBUS_PATH": disk.path.decode()}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"asked to do {word or 'nothing'}" in done.stderr


def test_without_a_path_it_says_how_it_is_called(scripts: Scripts) -> None:
    scripts.disk("")
    done = subprocess.run([scripts.host.script, "add"], env=scripts.host.environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "XENBUS_PATH=backend/vbd/DOMID/DEVID" in done.stderr


def test_the_bsds_call_with_path_and_state(scripts: Scripts, devices: list[str]) -> None:
    """C4, C5: as far as the library goes; what is published is the platform's matter."""
    file = scripts.host.directory / "out"
    scripts.disk(f'echo "$command $XENBUS_TYPE $XENBUS_BASE_PATH" >>"{file}"')
    path = "/local/domain/0/backend/vbd/5/51712"
    for words in (["add"], ["remove"], ["2"], ["6"]):
        subprocess.run([scripts.host.script, path, *words], env=scripts.host.environment(), check=True)
    base = "vbd /local/domain/0/backend"
    assert file.read_text().splitlines() == [f"{word} {base}" for word in ("add", "remove", "add", "remove")]


VALUES = {
    "spaces": b"  a  b\t ",
    "newlines": b"one\n\ntwo\n  three",
    "backslashes": rb"a\nb\x20c\\ %s %d \0",
    "quotes": b"'\"`$(id) ${HOME} *?[a-z]~!#",
    "utf8": "Gästé/диск/磁盘".encode(),
    "all": bytes(byte for byte in range(1, 256) if byte != 10),
    "dash": b"-n",
    "long": b"x" * 4000,
}


def test_values_survive_reading_and_writing(scripts: Scripts) -> None:
    copy = 'v=$(xenstore_read "$XENBUS_PATH/$n"); xenstore_write "$XENBUS_PATH/copy-$n" "$v"'
    body = f"for n in {' '.join(VALUES)}; do {copy}; done"
    disk = scripts.disk(body)
    disk.write(**VALUES)
    done = disk.add()
    assert done.status == 0, done.output
    assert {name: done.nodes[f"copy-{name}"] for name in VALUES} == VALUES


def test_reading_many_writing_many_and_defaults(scripts: Scripts) -> None:
    body = (
        'b=$XENBUS_PATH; xenstore_write "$b/one" 1 "$b/two" "2 3"; xenstore_read "$b/one" "$b/two" >&3\n'
        'xenstore_read_default "$b/three" "a default" >&3; xenstore_read_default "$b/one" x >&3'
    )
    assert out(scripts, body) == ["1", "2 3", "a default", "1"]


@pytest.mark.parametrize("node", ["missing", "empty"])
def test_a_value_that_is_not_there_ends_the_script_with_its_name(scripts: Scripts, node: str) -> None:
    disk = scripts.disk(f'v=$(xenstore_read "$XENBUS_PATH/{node}")\necho went on >&2')
    disk.write(empty=b"")
    done = disk.add()
    assert (done.status, done.outcome) == (1, b"error")
    what = "is not in xenstore" if node == "missing" else "is empty in xenstore"
    assert done.error == f"backend/vbd/5/51712/{node} {what}"
    assert "went on" not in done.output


def test_writing_never_makes_a_removed_disk_again(scripts: Scripts) -> None:
    disk = scripts.disk('xenstore_write "$XENBUS_PATH/x" y')
    disk.forget()
    assert disk.add().status == 1
    assert disk.nodes() == {}
    assert disk.remove().status == 0
    assert disk.nodes() == {}


def test_canonical_modes(scripts: Scripts) -> None:
    canonical = {"r": "r", "w": "w", "ro": "r", "rw": "w", "w!": "!", "rw!": "!", "r!": "r", "!w": "!"}
    body = f'for m in {" ".join(map(repr, canonical))}; do canonicalise_mode "$m" >&3; done'
    assert out(scripts, body) == list(canonical.values())


def test_numbers_of_devices(scripts: Scripts, devices: list[str]) -> None:
    number = os.stat(devices[0]).st_rdev
    expected = f"{os.major(number):x}:{os.minor(number):x}"
    body = f"device_major_minor {devices[0]} >&3; device_major_minor /none/there >&3 || echo none >&3"
    assert out(scripts, body) == [expected, "none"]


def test_same_vm(scripts: Scripts, host: Host) -> None:
    host.domain(6)
    host.domain(7, vm="/vm/00000000-0000-0000-0000-000000000005")
    host.domain(8, target="5")
    body = "for d in 5 6 7 8; do if same_vm $d; then echo $d >&3; fi; done; FRONTEND_ID=6; same_vm 6 && echo own >&3"
    assert out(scripts, body) == ["5", "7", "8", "own"]


def test_hooks_are_sourced(scripts: Scripts) -> None:
    folder = scripts.folder / "block-add.d"
    folder.mkdir()
    for name, mode in (("a.hook", 0o755), ("b.hook", 0o644), ("c.other", 0o755)):
        (folder / name).write_text(f'seen="$seen {name}"\n')
        (folder / name).chmod(mode)
    assert out(scripts, 'call_hooks block add; call_hooks block none; echo "$seen" >&3') == [" a.hook"]


def test_do_without_error_goes_on(scripts: Scripts) -> None:
    assert out(scripts, "do_without_error ls /none/there; echo on >&3") == ["on"]


def test_a_free_loop_device(bash: Scripts, tmp_path: Path) -> None:
    [device] = out(bash, "find_free_loopback_dev >&3")
    assert device.startswith("/dev/loop")
    bash.program("losetup", "#!/bin/sh\nexit 1\n")
    [without] = out(bash, "find_free_loopback_dev >&3")
    assert without.startswith("/dev/loop")
    assert not Path(f"/sys/block/{without[5:]}/loop").exists() or without == device


def test_an_argument_with_an_equals_sign_is_no_command(scripts: Scripts) -> None:
    disk = scripts.disk("success")
    env = scripts.host.environment() | {"XENBUS_PATH": disk.path.decode()}
    subprocess.run([scripts.host.script, "a=b", "add"], env=env, check=True)
    assert disk.nodes()["hotplug-status"] == b"connected"


class TestSharing:
    """check_sharing and its kin, which so far everybody copied."""

    def test_a_free_device(self, bash: Scripts, devices: list[str]) -> None:
        body = f"check_sharing device {devices[0]} w >&3; check_device_sharing {devices[0]} w; echo on >&3"
        assert out(bash, body) == ["ok", "on"]

    def test_another_guests_device(self, bash: Scripts, devices: list[str]) -> None:
        host = bash.host
        other = host.disk(9, devices[0])
        bash.write(f"write_dev {devices[0]}")
        assert other.add().status == 0
        number = other.nodes()["physical-device"].decode()
        assert out(bash, f"check_sharing device {devices[0]} w >&3") == [f"guest {number}"]
        assert out(bash, f"check_sharing device {devices[0]} r >&3") == [f"guest {number}"]
        done = bash.disk(f"check_device_sharing {devices[0]} w\necho went on >&2").add()
        assert (done.status, done.outcome) == (1, b"busy")
        assert "in use by guest 9 (guest9) as its disk xvda" in done.error
        assert "went on" not in done.output
        assert out(bash, f"check_device_sharing {devices[0]} w!; echo on >&3") == ["on"], "not checked"

    def test_readers_bear_readers(self, bash: Scripts, devices: list[str]) -> None:
        other = bash.host.disk(9, devices[0], mode="r")
        bash.write(f"write_dev {devices[0]}")
        assert other.add().status == 0
        assert out(bash, f"check_sharing device {devices[0]} r >&3") == ["ok"]
        assert out(bash, f"check_sharing device {devices[0]} w >&3")[0].startswith("guest ")

    def test_a_mounted_device(self, bash: Scripts, host: Host, tmp_path: Path) -> None:
        device = losetup("--find", "--show", str(make_image(tmp_path / "fs.img", size=8 << 20)))
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        (tmp_path / "mnt").mkdir()
        subprocess.run(["mount", device, tmp_path / "mnt"], check=True)
        try:
            assert out(bash, f"check_sharing device {device} w >&3")[0].startswith("local 7:")
        finally:
            subprocess.run(["umount", tmp_path / "mnt"], check=True)
            losetup("-d", device)

    def test_a_file_by_its_numbers(self, bash: Scripts, host: Host, image: Path) -> None:
        """As Xen's block calls it: stat -c %D and stat -c %i."""
        numbers = 'dev=$(stat -c %D "$f"); ino=$(stat -c %i "$f"); check_sharing file "$dev" w "$ino" >&3'
        assert out(bash, f"f={image}; {numbers}") == ["ok"]
        loop = losetup("--find", "--show", str(image))
        bash.write(f"write_dev {loop}")
        assert host.disk(9, str(image)).add().status == 0
        assert out(bash, f"f={image}; {numbers}")[0].startswith("guest 7:")
        done = bash.disk(f'f={image}; check_file_sharing "$f" 0 w 0').add()
        assert (done.status, done.outcome) == (1, b"busy")
        assert f"{image} is in use by guest 9" in done.error

    def test_do_ebusy(self, bash: Scripts) -> None:
        done = bash.disk("claim_lock block; do_ebusy 'Device x is mounted ' w guest").add()
        assert (done.status, done.outcome) == (1, b"busy")
        assert done.error == "Device x is mounted in use by another guest, so this guest may not have it"
