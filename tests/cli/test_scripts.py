"""`vbdkit install NAME`: custom scripts of vbdkit's own and of other packages, put in place, used, and taken away."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, Run, copy_package, pip, run_command
from tests.cli.test_install import STOCK
from tests.host import Host, backing_file, bound_loops
from tests.need import need_root
from vbdkit.toolstack.ways import manifest

# A package of somebody else, as it lies in site-packages.
MODULE = '''
"""Disks from losetup."""
from vbdkit.custom import Storage

from other_tools import LOSETUP


class Foo(Storage):
    """A file through losetup."""

    syntax = "FILE"
    example = "/srv/foo.img"

    def attach(self, target, mode):
        return self.tool(LOSETUP, "--find", "--show", target["file"]).strip()

    def detach(self, made):
        if "device" in made:
            self.tool(LOSETUP, "--detach", made["device"])


Number = 5
'''


def other_package(folder: Path, points: str = "block-foo = other.block:Foo", name: str = "other") -> Path:
    """Put a package and the metadata that pip leaves into a folder, and return that."""
    (folder / "other").mkdir(parents=True, exist_ok=True)
    (folder / "other" / "__init__.py").touch()
    (folder / "other" / "block.py").write_text(MODULE)
    (folder / "other_tools.py").write_text('LOSETUP = "losetup"\n')
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[vbdkit.scripts]\n{points}\n")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def package(kept_package: Path) -> Path:
    """One copy of the package for all tests here, which do not change it: it is compiled once."""
    return kept_package


@pytest.fixture
def other(safe_folder: Path) -> Path:
    """The folder of another package."""
    return other_package(safe_folder / "site")


@pytest.fixture
def both(package: Path, other: Path) -> Run:
    """Run the command where it finds the other package."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{package.parent}:{other}", "LC_ALL": "C.UTF-8"}

    def run(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
        return run_command(package, *arguments, **{"env": environment, **options})

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestInstall:
    def test_the_script_of_another_package_gives_a_guest_its_disk(
        self, both: Run, scripts: Path, other: Path, host: Host, image: Path
    ) -> None:
        places = ("--run-dir", host.run_dir, "--lock-dir", host.lock_dir)
        done = both("install", "block-foo", "--scripts-dir", scripts, *places, "--python", PYTHON)
        assert done.returncode == 0, done.stderr
        assert names(scripts) == ["block-foo"]
        host.script = scripts / "block-foo"
        disk = host.disk(5, image)
        added = disk.add()
        assert (added.status, added.output) == (0, "")
        assert backing_file(added.nodes["physical-device-path"]) == str(image)
        assert [path.name for path in host.run_dir.glob("vbd*")] == ["vbd-5-51712"]
        assert disk.remove().status == 0
        assert bound_loops() == []

    def test_its_manifest_is_where_toolstacks_look_and_is_what_it_describes(self, both: Run, scripts: Path) -> None:
        both("install", "block-foo", "--scripts-dir", scripts)
        script = scripts / "block-foo"
        said = subprocess.run([script, "--describe"], capture_output=True, text=True, check=True).stdout
        assert manifest(os.fsencode(script)) == json.loads(said)
        assert json.loads(said)["path-only"] is True
        assert json.loads(said)["name"] == "foo"

    def test_a_manifest_stays_in_the_bytes_that_toolstacks_read(self, both: Run, scripts: Path, other: Path) -> None:
        module = other / "other" / "block.py"
        module.write_text(module.read_text().replace("A file through losetup.", "Größe " * 2000))
        assert both("install", "block-foo", "--scripts-dir", scripts).returncode == 0
        assert manifest(os.fsencode(scripts / "block-foo")) == {"name": "foo", "path-only": True}
        module.write_text(module.read_text().replace("Größe " * 2000, "Größe."))
        assert both("install", "block-foo", "--scripts-dir", scripts).returncode == 0
        assert manifest(os.fsencode(scripts / "block-foo"))["description"] == "Größe."

    def test_what_is_not_said_is_as_for_block(self, both: Run, scripts: Path) -> None:
        both("install", "--scripts-dir", scripts, "--run-dir", "/run/one", "--lock-dir", "/run/two", "--deadline", "9")
        both("install", "block-foo", "--scripts-dir", scripts)
        last = (scripts / "block-foo").read_text().splitlines()[-1]
        assert last.endswith(', run_dir=b"/run/one", lock_dir=b"/run/two")')

    def test_install_without_names_brings_all_up_to_date(self, both: Run, scripts: Path) -> None:
        both("install", "block-foo", "--scripts-dir", scripts, "--deadline", "20")
        done = both("install", "--scripts-dir", scripts, "--run-dir", "/run/three")
        assert done.returncode == 0, done.stderr
        assert names(scripts) == ["block", "block-common.sh", "block-foo"]
        last = (scripts / "block-foo").read_text().splitlines()[-1]
        assert last.endswith('run_dir=b"/run/three", time_limit=20.0)')

    def test_one_whose_package_is_gone_stays_as_it_was(self, both: Run, command: Run, scripts: Path) -> None:
        both("install", "block-foo", "--scripts-dir", scripts)
        before = (scripts / "block-foo").read_bytes()
        done = command("install", "--scripts-dir", scripts)
        assert done.returncode == 0
        assert "block-foo as it was: no installed package offers a block script block-foo" in done.stdout
        assert (scripts / "block-foo").read_bytes() == before

    def test_a_dry_run_changes_nothing(self, both: Run, scripts: Path) -> None:
        done = both("install", "block-foo", "--scripts-dir", scripts, "--dry-run")
        assert done.returncode == 0
        assert 'storage="other.block:Foo"' in done.stdout
        assert names(scripts) == []

    def test_a_class_of_vbdkits_own_needs_no_entry_point(self, safe_folder: Path, scripts: Path) -> None:
        """The registry names modules that this vbdkit may have or not."""
        package = copy_package(safe_folder)
        own = package / "datapaths" / "lvm.py"
        own.write_text(MODULE.replace("from other_tools import LOSETUP", 'LOSETUP = "losetup"').replace("Foo", "Lvm"))
        done = run_command(package, "install", "block-lvm", "--scripts-dir", scripts)
        assert done.returncode == 0, done.stderr
        assert (scripts / "block-lvm").read_text().splitlines()[-1] == (
            'start("custom", storage="vbdkit.datapaths.lvm:Lvm")'
        )
        own.unlink()
        (scripts / "block-lvm").unlink()
        done = run_command(package, "install", "block-lvm", "--scripts-dir", scripts)
        assert (done.returncode, names(scripts)) == (1, [])
        assert "no installed package offers a block script block-lvm" in done.stderr

    def test_the_folders_name_need_not_be_ascii(self, package: Path, safe_folder: Path, scripts: Path) -> None:
        other = other_package(safe_folder / "Größe")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{package.parent}:{other}", "LC_ALL": "C.UTF-8"}
        done = run_command(package, "install", "block-foo", "--scripts-dir", scripts, env=environment)
        assert done.returncode == 0, done.stderr
        for locale in ("C", "C.UTF-8", "POSIX"):
            run = subprocess.run([scripts / "block-foo", "--describe"], env={"LC_ALL": locale}, capture_output=True)
            assert (run.returncode, run.stderr) == (0, b"")


class TestWhatWasThere:
    """Xen's packages bring a block-nbd and others of their own."""

    def test_is_kept_and_comes_back(self, both: Run, scripts: Path) -> None:
        (scripts / "block-foo").write_text(STOCK)
        (scripts / "block-foo").chmod(0o750)
        assert both("install", "block-foo", "--scripts-dir", scripts).returncode == 0
        assert (scripts / "block-foo.before-vbdkit").read_text() == STOCK
        assert both("uninstall", "block-foo", "--scripts-dir", scripts).returncode == 0
        assert (scripts / "block-foo").read_text() == STOCK
        assert (scripts / "block-foo").stat().st_mode & 0o777 == 0o750
        assert names(scripts) == ["block-foo"]

    def test_uninstall_takes_all_of_ours_and_nothing_else(self, both: Run, scripts: Path) -> None:
        for name in ("block", "block-iscsi"):
            (scripts / name).write_text(STOCK)
        both("install", "--scripts-dir", scripts)
        both("install", "block-foo", "--scripts-dir", scripts)
        assert both("uninstall", "--scripts-dir", scripts).returncode == 0
        assert {name: (scripts / name).read_text() for name in names(scripts)} == {"block": STOCK, "block-iscsi": STOCK}

    def test_uninstall_of_one_leaves_the_others(self, both: Run, scripts: Path) -> None:
        both("install", "block", "block-foo", "--scripts-dir", scripts)
        assert both("uninstall", "block-foo", "--scripts-dir", scripts).returncode == 0
        assert names(scripts) == ["block", "block-common.sh"]

    def test_uninstall_of_block_takes_its_library_along(self, both: Run, scripts: Path) -> None:
        both("install", "block", "block-foo", "--scripts-dir", scripts)
        assert both("uninstall", "block", "--scripts-dir", scripts).returncode == 0
        assert names(scripts) == ["block-foo"]

    def test_uninstall_refuses_what_is_not_ours_and_takes_nothing(self, both: Run, scripts: Path) -> None:
        both("install", "block-foo", "--scripts-dir", scripts)
        (scripts / "block-iscsi").write_text(STOCK)
        for name in ("block-iscsi", "block-none", "../etc"):
            done = both("uninstall", "block-foo", name, "--scripts-dir", scripts)
            assert done.returncode == 1
            assert "nothing to take away" in done.stderr
        assert names(scripts) == ["block-foo", "block-iscsi"]

    def test_uninstall_tells_of_disks_that_only_it_can_take_back(
        self, both: Run, scripts: Path, host: Host, image: Path
    ) -> None:
        both("install", "block-foo", "--scripts-dir", scripts, "--run-dir", host.run_dir, "--lock-dir", host.lock_dir)
        host.script = scripts / "block-foo"
        assert host.disk(5, image).add().status == 0
        (host.run_dir / "vbd-7-51712").write_text("vbdkit 1\ndatapath file\n")
        done = both("uninstall", "block-foo", "--scripts-dir", scripts)
        assert "1 entry" in done.stdout
        assert "only they can take back" in done.stdout


class TestList:
    def test_shows_what_there_is_and_what_is_installed(self, both: Run, scripts: Path) -> None:
        def state(name: str) -> str:
            lines = both("install", "--list", "--scripts-dir", scripts).stdout.splitlines()
            (line,) = [line for line in lines if line.split()[0] == name]
            return line

        assert "not installed" in state("block")
        assert "not installed" in state("block-foo")
        assert "other 1.2 (other.block:Foo)" in state("block-foo")
        (scripts / "block-foo").write_text(STOCK)
        assert "another's is there" in state("block-foo")
        both("install", "block", "block-foo", "--scripts-dir", scripts)
        assert "  installed " in state("block")
        assert "  installed " in state("block-foo")
        moved = scripts / "block-foo"
        moved.write_text(moved.read_text().replace("other.block:Foo", "other.block:Bar"))
        assert "from elsewhere" in state("block-foo")

    def test_changes_nothing(self, both: Run, scripts: Path) -> None:
        assert both("install", "--list", "--scripts-dir", scripts).returncode == 0
        assert names(scripts) == []

    def test_shows_one_that_nobody_offers_any_more(self, both: Run, command: Run, scripts: Path) -> None:
        both("install", "block-foo", "--scripts-dir", scripts)
        assert "no package offers it any more" in command("install", "--list", "--scripts-dir", scripts).stdout


class TestRefusals:
    @pytest.mark.parametrize(
        ("points", "name", "words"),
        [
            ("foo = other.block:Foo", "foo", "its name is none of a custom block script"),
            ("block-foo = other.block", "block-foo", "no module:Class but other.block"),
            ("block-foo = other.block:Number", "block-foo", "is no subclass of vbdkit.custom.Storage"),
            ("block-foo = other.block:Bar", "block-foo", "has no attribute 'Bar'"),
            ("block-foo = nowhere:Foo", "block-foo", "No module named 'nowhere'"),
            ("block-foo = other.block:Foo", "block-bar", "no installed package offers a block script block-bar"),
        ],
    )
    def test_an_offer_that_is_none(
        self, package: Path, safe_folder: Path, scripts: Path, points: str, name: str, words: str
    ) -> None:
        other = other_package(safe_folder / "site", points)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{package.parent}:{other}"}
        done = run_command(package, "install", name, "--scripts-dir", scripts, env=environment)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert names(scripts) == []

    @pytest.mark.parametrize("there", [True, False])
    def test_a_name_of_vbdkits_own_is_nobody_elses(self, safe_folder: Path, scripts: Path, there: bool) -> None:
        package = copy_package(safe_folder)
        own = package / "datapaths" / "lvm.py"
        own.write_text("from vbdkit.custom import Storage\nclass Lvm(Storage): ...\n") if there else own.unlink(True)
        other = other_package(safe_folder / "site", "block-lvm = other.block:Foo")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{package.parent}:{other}"}
        done = run_command(package, "install", "block-lvm", "--scripts-dir", scripts, env=environment)
        assert done.returncode == (0 if there else 1)
        assert there or "vbdkit's own script has this name" in done.stderr
        assert not there or b"vbdkit.datapaths.lvm:Lvm" in (scripts / "block-lvm").read_bytes()

    def test_two_packages_with_one_name(self, package: Path, safe_folder: Path, scripts: Path) -> None:
        one, two = other_package(safe_folder / "one"), other_package(safe_folder / "two", name="second")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{package.parent}:{one}:{two}"}
        done = run_command(package, "install", "block-foo", "--scripts-dir", scripts, env=environment)
        assert done.returncode == 1
        assert "other 1.2 and second 1.2 both offer" in done.stderr

    def test_a_folder_in_the_place_of_the_script(self, both: Run, scripts: Path) -> None:
        (scripts / "block-foo").mkdir()
        assert "neither a file nor a link" in both("install", "block-foo", "--scripts-dir", scripts).stderr

    @pytest.mark.parametrize("inside", ["", "other", "other/block.py", "other_tools.py"])
    def test_root_runs_only_what_root_can_change(self, both: Run, scripts: Path, other: Path, inside: str) -> None:
        need_root()
        os.chown(other / inside, 1000, -1)
        done = both("install", "block-foo", "--scripts-dir", scripts)
        assert done.returncode == 1
        assert f"root would run what others can change for block-foo: {other / inside} belongs to" in done.stderr
        assert names(scripts) == []

    def test_nothing_of_the_package_runs_before_it_is_trusted(self, both: Run, scripts: Path, other: Path) -> None:
        need_root()
        (other / "other" / "block.py").write_text(f"open({str(scripts / 'ran')!r}, 'w')\n")
        (other / "other" / "block.py").chmod(0o666)
        assert both("install", "block-foo", "--scripts-dir", scripts).returncode == 1
        assert names(scripts) == []


def test_a_project_that_pip_installs(package: Path, safe_folder: Path, scripts: Path) -> None:
    """A project with an entry point, installed by pip as an administrator would."""
    project = safe_folder / "project"
    project.mkdir()
    (project / "block_foo.py").write_text(MODULE.replace("from other_tools import LOSETUP", 'LOSETUP = "losetup"'))
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n[project]\nname = "block-foo"\n'
        'version = "1.0"\n\n[project.entry-points."vbdkit.scripts"]\nblock-foo = "block_foo:Foo"\n\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["block_foo.py"]\n'
    )
    site = safe_folder / "lib2"
    pip("install", "--no-deps", "--target", site, project)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{package.parent}:{site}"}
    done = run_command(package, "install", "block-foo", "--scripts-dir", scripts, env=environment)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([scripts / "block-foo", "--describe"], capture_output=True, check=True).stdout
    assert json.loads(said)["description"] == "A file through losetup."
