"""What a custom script in Python answers besides add and remove; path-only, and on other systems."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.custom.conftest import LOOP, Author, copies, loops_left
from tests.host import Host, backing_file, bound_loops
from tests.images import make_image
from tests.platform.models.freebsd import Freebsd
from tests.platform.models.netbsd import Netbsd
from tests.toolstack.xen import Xen, make_xen
from tests.waiting import until
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack import netbsd_host
from vbdkit.toolstack.ways import manifest

VERBS = '''
class Test(Storage):
    """Volumes of a test.

    A volume is a file. It is
        made before it is used.
    """
    syntax = "POOL/VOLUME[@SNAPSHOT]"
    example = "ssd/web"
    tools = {"losetup": "util-linux", "no-such-tool": "fancy-utils"}
    modules = ("no_such_module", "loop")

    def attach(self, target, mode):
        raise Failure("no")

    @verb
    def create(self, name, size="1M"):
        """Make a volume."""
        if name == "bad":
            raise Failure("{name} is no name", name=name)
        if name == "fault":
            return undefined
        return f"{name} of {size}"

    @verb
    def take_snapshot(self, name):
        """Keep what it is now."""
        return self.tool("sh", "-c", "echo snapshot of $0", name).strip()

    @verb
    def status(self):
        """Say whose disk it is."""
        return f"{self.vbd} {self.domid} {self.devid}"

    @verb
    def hang(self, file):
        self.tool("sh", "-c", "echo $$ >$0; exec sleep 600", file)
'''


def call(author: Author, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Call the script by hand."""
    return subprocess.run(
        [author.host.script, *arguments],
        env=author.host.environment() | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestVerbs:
    """S3."""

    @pytest.fixture(autouse=True)
    def _script(self, author: Author) -> None:
        author.write(VERBS)

    @pytest.mark.parametrize(
        ("words", "output"),
        [
            (["create", "web"], "web of 1M\n"),
            (["create", "web", "5G"], "web of 5G\n"),
            (["take-snapshot", "a b"], "snapshot of a b\n"),
        ],
    )
    def test_a_word_of_its_own_without_a_disk(self, author: Author, words: list[str], output: str) -> None:
        done = call(author, *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, output, "")

    def test_with_a_disk(self, author: Author) -> None:
        done = call(author, "status", XENBUS_PATH="backend/vbd/5/51712")
        assert done.stdout == "vbd-5-51712 5 51712\n"

    @pytest.mark.parametrize(
        ("words", "status", "said"),
        [
            (["create", "bad"], 1, "block-test: bad is no name\n"),
            (["create"], 2, "block-test create: missing a required argument: 'name'\n"),
            (["create", "a", "b", "c"], 2, "block-test create: too many positional arguments\n"),
            (["--frobnicate"], 2, "block-test: there is no option --frobnicate; --help tells\n"),
            (["--detach"], 1, "block-test: --detach takes a backend path, and a record on stdin; vbdkit gc uses it\n"),
        ],
    )
    def test_wrong_use_is_one_sentence(self, author: Author, words: list[str], status: int, said: str) -> None:
        done = call(author, *words)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", said)

    def test_a_fault_is_one_sentence(self, author: Author) -> None:
        done = call(author, "create", "fault")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("block-test: the script's create has a fault: NameError: name 'undefined' is not")
        assert len(done.stderr.splitlines()) == 1

    def test_a_signal_ends_what_it_started(self, author: Author, tmp_path: Path) -> None:
        file = tmp_path / "pid"
        process = subprocess.Popen([author.host.script, "hang", file], stderr=subprocess.PIPE, text=True)
        until(lambda: file.exists() and file.read_text().strip(), "the program")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 1
        assert "SIGTERM" in said
        assert not Path("/proc", file.read_text().strip()).exists()

    def test_a_word_that_is_none_is_answered_as_a_toolstacks_mistake(self, author: Author) -> None:
        done = call(author, "frobnicate", XENBUS_PATH="backend/vbd/5/51712")
        assert done.returncode == 1
        assert "frobnicate" in done.stderr

    def test_a_method_that_is_no_verb_is_no_word(self, author: Author) -> None:
        for word in ("parse", "tool", "detach", "__init__"):
            assert call(author, word, XENBUS_PATH="backend/vbd/5/51712").returncode == 1


class TestWhatItSaysOfItself:
    def test_describe_is_json(self, author: Author) -> None:
        author.write(VERBS)
        done = call(author, "--describe")
        said = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (0, "")
        assert said["name"] == "test"
        assert said["description"] == "Volumes of a test."
        assert said["syntax"] == "POOL/VOLUME[@SNAPSHOT]"
        assert said["example"] == "ssd/web"
        assert said["tools"] == {"losetup": "util-linux", "no-such-tool": "fancy-utils"}
        assert said["modules"] == ["no_such_module", "loop"]
        assert said["verbs"] == ["add", "remove", "create", "hang", "status", "take-snapshot"]
        assert said["path-only"] is True

    def test_check_host_names_what_is_missing_and_its_package(self, author: Author) -> None:
        author.write(VERBS)
        done = call(author, "--check-host")
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert any(line.startswith("ok ") and line.endswith("/losetup") for line in lines)
        assert "missing  the program no-such-tool (the package fancy-utils has it)" in lines
        assert "missing  the kernel's module no_such_module" in lines
        assert "ok       the kernel's module loop" in lines
        assert "this host can serve" not in done.stdout

    def test_check_host_is_0_where_nothing_is_missing(self, author: Author) -> None:
        author.write(LOOP.replace('    syntax = "FILE"', '    tools = {"losetup": "util-linux"}'))
        done = call(author, "--check-host")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "this host can serve test")

    def test_check_host_asks_the_author_too(self, author: Author) -> None:
        author.write(LOOP + '\n    def check_host(self):\n        return ["a licence for losetup"]\n')
        done = call(author, "--check-host")
        assert (done.returncode, done.stdout) == (1, "missing  a licence for losetup\n")

    def test_a_fault_in_check_host_is_one_sentence(self, author: Author) -> None:
        author.write(LOOP + "\n    def check_host(self):\n        return undefined\n")
        done = call(author, "--check-host")
        assert done.returncode == 1
        assert done.stderr.startswith("block-test: the script's check_host has a fault: NameError")
        assert len(done.stderr.splitlines()) == 1

    def test_help_shows_how_a_guest_gets_it_and_all_verbs(self, author: Author) -> None:
        author.write(VERBS)
        done = call(author, "--help")
        assert done.returncode == 0
        assert "script=block-test,vdev=xvda,target=ssd/web" in done.stdout
        assert "POOL/VOLUME[@SNAPSHOT]" in done.stdout
        assert "create            Make a volume." in done.stdout
        assert "made before it is used." in done.stdout


@pytest.fixture
def xen(tmp_path: Path, store_socket: Path, author: Author) -> Iterator[Xen]:
    """The author's host, with a toolstack and a backend driver."""
    with make_xen(tmp_path, store_socket) as made:
        author.host = made.host
        yield made


def nothing_left(xen: Xen) -> None:
    """A loop device that anybody looks at in the moment of its release goes when they have looked."""
    until(lambda: not xen.left(), "everything taken back")


# As `vbdkit install` writes it into a stub; in a file of one's own it stands below the first line.
PATH_ONLY = '# block-script: {"path-only": true}\n'


class TestPathOnly:
    """G1, G2: the script makes the device, the toolstack checks and publishes it."""

    def write(self, author: Author, body: str) -> None:
        script = author.write(body)
        first, rest = script.read_text().split("\n", 1)
        script.write_text(f"{first}\n{PATH_ONLY}{rest}")
        assert manifest(os.fsencode(script)) == {"path-only": True}

    def test_the_script_alone_writes_the_path_only(self, author: Author, image: Path) -> None:
        disk = author.disk(LOOP, image)
        done = disk.run("add", extra={"VBDKIT_PUBLISH": "path"})
        assert done.status == 0
        assert backing_file(done.nodes["physical-device-path"]) == str(image)
        assert not {"physical-device", "hotplug-status", "node"} & set(done.nodes)
        assert disk.remove().status == 0
        assert (loops_left(), author.records()) == ([], [])

    @pytest.mark.parametrize("how", ["a device", "a plain file"])
    def test_a_guest_reads_its_disk_and_gives_it_back(self, author: Author, xen: Xen, image: Path, how: str) -> None:
        plain = 'class Test(Storage):\n    def attach(self, target, mode):\n        return target["target"]\n'
        self.write(author, LOOP if how == "a device" else plain)
        attached = xen.attach(f"vdev=xvda,script=block-test,target={image}")
        assert attached.disk.way == b"path-only"
        until(xen.driver.open_count, "the driver")
        assert xen.read("/local/domain/0/backend/vbd/5/51712/hotplug-status") == b"connected"
        assert xen.detach() == []
        nothing_left(xen)

    def test_a_second_guest_is_refused_by_identity(self, author: Author, xen: Xen, image: Path, tmp_path: Path) -> None:
        self.write(author, copies(tmp_path))
        xen.attach(f"vdev=xvda,script=block-test,target={image}")
        with pytest.raises(Failure, match=r"is in use by guest 5 \(web\) as its disk xvda, read-write"):
            xen.attach(f"vdev=xvda,script=block-test,target={image}", 6)
        assert author.records() == ["vbd-5-51712"]
        assert xen.detach() == []
        assert xen.attach(f"vdev=xvda,script=block-test,target={image}", 6).device
        assert xen.detach(domid=6) == []
        nothing_left(xen)

    def test_a_second_guest_is_refused_by_the_device(self, author: Author, xen: Xen, image: Path) -> None:
        self.write(author, LOOP)
        xen.attach(f"vdev=xvda,script=block-test,target={image}")
        with pytest.raises(Failure, match=r"is in use by guest 5 \(web\)"):
            xen.attach(f"vdev=xvda,script=block-test,target={image}", 6)
        assert len(bound_loops()) == 1
        assert xen.detach() == []
        nothing_left(xen)

    def test_a_script_that_fails_leaves_nothing(self, author: Author, xen: Xen, image: Path) -> None:
        self.write(author, LOOP.replace("return self.tool(", 'self.tool("false")\n        return self.tool('))
        with pytest.raises(Failure, match="false failed: exit status 1"):
            xen.attach(f"vdev=xvda,script=block-test,target={image}")
        nothing_left(xen)


SERVED = '''
class Test(Storage):
    """A file as it is."""
    syntax = "FILE"

    def attach(self, target, mode):
        self.note(began="1")
        return target["file"]

    def detach(self, made):
        self.log("taken back " + made["file"] + " " + made.get("began", "0"))
'''


class TestOtherSystems:
    @pytest.fixture
    def netbsd(self, tmp_path: Path, store_socket: Path) -> Iterator[Author]:
        machine = Netbsd(tmp_path / "model")
        yield Author(Host(tmp_path, store_socket, "netbsd", settings=machine.settings))
        netbsd_host.take_away(machine.folder)

    @pytest.fixture
    def freebsd(self, tmp_path: Path, store_socket: Path) -> Author:
        system = Freebsd(tmp_path / "model")
        return Author(Host(tmp_path, store_socket, "freebsd", settings=system.place.settings))

    def test_c5_netbsd_a_backend_path_and_a_state(self, netbsd: Author, image: Path) -> None:
        disk = netbsd.disk(SERVED, image)
        done = disk.add()
        assert (done.status, done.outcome) == (0, b"connected"), done
        assert done.nodes["physical-device"].isdigit()
        assert netbsd.records() == ["vbd-5-51712"]
        assert netbsd.host.disk(6, image).add().outcome == b"busy"
        done = disk.remove()
        assert done.status == 0
        assert f"taken back {image} 1" in done.output
        assert netbsd.records() == []

    def test_c4_freebsd_a_backend_path_and_a_word(self, freebsd: Author, image: Path) -> None:
        disk = freebsd.disk(SERVED, image)
        done = disk.add()
        assert (done.status, done.outcome) == (0, b"connected"), done
        assert done.nodes["physical-device-path"] == os.fsencode(image)
        assert freebsd.host.disk(6, image).add().outcome == b"busy"
        done = disk.remove()
        assert done.status == 0
        assert f"taken back {image} 1" in done.output
        assert freebsd.records() == []

    def test_freebsd_publishes_whole_whatever_the_toolstack_asks(self, freebsd: Author, image: Path) -> None:
        """The driver opens physical-device-path as it appears; so nothing may be left to be checked then."""
        done = freebsd.disk(SERVED, image).run("add", extra={"VBDKIT_PUBLISH": "path"})
        assert (done.status, done.outcome) == (0, b"connected")

    def test_an_identity_is_asked_there_too(self, freebsd: Author, tmp_path: Path) -> None:
        body = SERVED.replace(
            "    def attach(", '    def identity(self, target):\n        return "one"\n\n    def attach('
        )
        one, two = make_image(tmp_path / "one.img"), make_image(tmp_path / "two.img")
        assert freebsd.disk(body, one).add().status == 0
        done = freebsd.host.disk(6, two).add()
        assert done.outcome == b"busy"
        assert "guest 5" in done.error
