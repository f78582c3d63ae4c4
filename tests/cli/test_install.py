"""`vbdkit install` and `vbdkit uninstall`: what is put in place, what is kept, what is refused."""

import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, copy_package, pip, run_command
from tests.need import need_program, need_root
from vbdkit.cli import stub
from vbdkit.platform import Backing, netbsd

Run = Callable[..., "subprocess.CompletedProcess[str]"]
STOCK = "#!/bin/sh\n# the block script of a Xen package\n"


def stock_block(scripts: Path, mode: int = 0o755, text: str = STOCK) -> Path:
    block = scripts / "block"
    block.write_text(text)
    block.chmod(mode)
    return block


def names(folder: Path) -> list[str]:
    """What is in the folder, but for a library of ours (test_library.py has that one)."""
    return sorted(path.name for path in folder.iterdir() if path.name != "block-common.sh" or not stub.is_ours(path))


class TestInstalledScript:
    def test_is_a_few_lines_that_name_interpreter_and_package(self, command: Run, scripts: Path, package: Path) -> None:
        done = command("install", "--scripts-dir", scripts, "--python", PYTHON)
        assert done.returncode == 0, done.stderr
        lines = (scripts / "block").read_text().splitlines()
        assert lines[0] == f"#!{PYTHON} -IS"
        assert lines[1].startswith("# Xen block script of vbdkit ")
        assert f'sys.path.insert(0, "{package.parent}")' in lines
        assert lines[-1] == 'start("block")'
        assert len(lines) < 10

    def test_is_executable_by_everybody_and_writable_by_its_owner_whatever_the_umask(
        self, command: Run, scripts: Path
    ) -> None:
        assert command("install", "--scripts-dir", scripts, umask=0o077).returncode == 0
        assert stat.S_IMODE((scripts / "block").stat().st_mode) == 0o755
        assert names(scripts) == ["block"]

    def test_runs_and_says_how_a_toolstack_calls_it(self, command: Run, scripts: Path) -> None:
        command("install", "--scripts-dir", scripts)
        run = subprocess.run([scripts / "block"], env={}, capture_output=True, text=True, cwd="/")
        assert run.returncode == 1
        assert "XENBUS_PATH" in run.stderr
        assert "Traceback" not in run.stderr

    def test_does_not_see_the_environment_the_folder_it_starts_in_or_its_neighbours(
        self, command: Run, scripts: Path, package: Path, tmp_path: Path
    ) -> None:
        command("install", "--scripts-dir", scripts)
        for folder in (tmp_path, package.parent, scripts):
            for module in ("struct", "select", "fcntl", "stat", "errno"):
                (folder / f"{module}.py").write_text("raise SystemExit('a stranger ran')")
        run = subprocess.run(
            [scripts / "block", "add"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path
        )
        assert "a stranger ran" not in run.stderr
        assert run.returncode == 1

    def test_carries_only_the_arguments_that_differ_from_the_defaults(self, command: Run, scripts: Path) -> None:
        command("install", "--scripts-dir", scripts, "--run-dir", "/run/a b", "--system", "freebsd")
        assert (scripts / "block").read_text().splitlines()[
            -1
        ] == 'start("block", system="freebsd", run_dir=b"/run/a b")'

    def test_carries_the_form_that_netbsds_driver_wants(self, command: Run, scripts: Path) -> None:
        command("install", "--scripts-dir", scripts, "--system", "netbsd", "--physical-device", "hex")
        last = (scripts / "block").read_text().splitlines()[-1]
        assert last == 'start("block", system="netbsd", physical_device=b"hex")'

    def test_the_form_is_that_of_other_commands_too(self, command: Run, scripts: Path) -> None:
        """What does a script's work (devd, attach --no-script, gc) publishes as the script would."""
        command("install", "--scripts-dir", scripts, "--system", "netbsd", "--physical-device", "hex")
        form = netbsd.nodes(Backing(b"/dev/wd0e", os.makedev(3, 4), {}))[-1]
        assert form == (b"physical-device", b"%d" % os.makedev(3, 4))
        try:
            assert stub.use(scripts / "block")["system"] == "netbsd"
            assert netbsd.nodes(Backing(b"/dev/wd0e", os.makedev(3, 4), {}))[-1] == (b"physical-device", b"3:4")
        finally:
            netbsd.configure()

    def test_the_form_is_no_other_systems(self, command: Run, scripts: Path) -> None:
        done = command("install", "--scripts-dir", scripts, "--system", "linux", "--physical-device", "hex")
        assert done.returncode == 1
        assert "--physical-device is NetBSD's" in done.stderr
        assert list(scripts.iterdir()) == []

    def test_carries_the_deadline_and_keeps_to_it(self, command: Run, scripts: Path, tmp_path: Path) -> None:
        place = ["--run-dir", tmp_path / "run", "--lock-dir", tmp_path / "lock"]
        done = command("install", "--scripts-dir", scripts, *place, "--deadline", "0.5")
        assert done.returncode == 0, done.stderr
        assert "the toolstack kills" not in done.stdout
        assert (scripts / "block").read_text().rstrip().endswith(", time_limit=0.5)")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "store"))
            silent.listen()
            environment = {"XENSTORED_PATH": str(tmp_path / "store"), "XENBUS_PATH": "backend/vbd/5/51712"}
            run = subprocess.run(
                [scripts / "block", "add"], env=environment, capture_output=True, text=True, timeout=20
            )
        assert run.returncode == 1
        assert "did not answer in time" in run.stderr

    def test_warns_of_a_deadline_that_the_toolstack_does_not_wait_for(self, command: Run, scripts: Path) -> None:
        done = command("install", "--scripts-dir", scripts, "--deadline", "40")
        assert done.returncode == 0
        assert "the toolstack kills a script after 40 s" in done.stdout

    @pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", ""])
    def test_refuses_a_deadline_that_is_none(self, command: Run, scripts: Path, text: str) -> None:
        done = command("install", "--scripts-dir", scripts, f"--deadline={text}")
        assert done.returncode == 2
        assert "no number of seconds above 0" in done.stderr
        assert names(scripts) == []

    def test_finds_a_package_whose_path_is_not_ascii_in_any_locale(self, safe_folder: Path, scripts: Path) -> None:
        folder = safe_folder / "Lüfter"
        folder.mkdir()
        done = run_command(copy_package(folder), "install", "--scripts-dir", scripts)
        assert done.returncode == 0, done.stderr
        for locale in ("C", "C.UTF-8", "POSIX"):
            run = subprocess.run([scripts / "block"], env={"LC_ALL": locale}, capture_output=True, text=True, cwd="/")
            assert "XENBUS_PATH" in run.stderr

    def test_its_modules_are_compiled_for_its_interpreter(self, command: Run, scripts: Path, package: Path) -> None:
        command("install", "--scripts-dir", scripts)
        compiled = {path.name.split(".")[0] for path in (package / "engine" / "__pycache__").glob("*.pyc")}
        assert compiled >= {path.stem for path in (package / "engine").glob("*.py")}
        assert list((package / "__pycache__").glob("hot-block-add-linux.*"))
        assert not [path for path in package.rglob("__pycache__/*") if path.stat().st_mode & 0o022]


class TestWhatWasThere:
    def test_is_kept_under_a_second_name(self, command: Run, scripts: Path) -> None:
        before = stock_block(scripts, 0o750).stat()
        done = command("install", "--scripts-dir", scripts)
        assert "block.before-vbdkit" in done.stdout
        after = (scripts / "block.before-vbdkit").stat()
        assert (after.st_ino, after.st_mode, after.st_mtime) == (before.st_ino, before.st_mode, before.st_mtime)

    def test_stays_kept_when_installed_again(self, command: Run, scripts: Path) -> None:
        stock_block(scripts)
        for _ in range(3):
            assert command("install", "--scripts-dir", scripts).returncode == 0
        assert (scripts / "block.before-vbdkit").read_text() == STOCK
        assert names(scripts) == ["block", "block.before-vbdkit"]

    def test_installing_again_says_that_nothing_changed(self, command: Run, scripts: Path) -> None:
        command("install", "--scripts-dir", scripts)
        before = (scripts / "block").stat()
        assert "unchanged" in command("install", "--scripts-dir", scripts).stdout
        after = (scripts / "block").stat()  # but for the time of the last reading
        assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)

    def test_an_earlier_script_of_ours_is_replaced_not_kept(self, command: Run, scripts: Path) -> None:
        command("install", "--scripts-dir", scripts, "--run-dir", "/run/one")
        assert "replaced" in command("install", "--scripts-dir", scripts, "--run-dir", "/run/two").stdout
        assert b"/run/two" in (scripts / "block").read_bytes()
        assert names(scripts) == ["block"]

    def test_nothing_is_lost_when_an_update_brought_a_new_one(self, command: Run, scripts: Path) -> None:
        for number in ("first", "second", "third"):
            stock_block(scripts, text=STOCK + number)
            done = command("install", "--scripts-dir", scripts)
            assert done.returncode == 0
        assert "block.before-vbdkit.2" in done.stdout
        kept = {name: (scripts / name).read_text().removeprefix(STOCK) for name in names(scripts) if name != "block"}
        assert kept == {
            "block.before-vbdkit": "third",
            "block.before-vbdkit.1": "first",
            "block.before-vbdkit.2": "second",
        }

    def test_the_same_one_come_again_is_not_kept_twice(self, command: Run, scripts: Path) -> None:
        for _ in range(2):
            stock_block(scripts)
            command("install", "--scripts-dir", scripts)
        assert names(scripts) == ["block", "block.before-vbdkit"]

    def test_an_install_that_was_killed_half_way_is_finished_by_the_next(self, command: Run, scripts: Path) -> None:
        os.link(stock_block(scripts), scripts / "block.before-vbdkit")
        (scripts / ".block.vbdkit-4711").write_text("half a scr")
        assert command("install", "--scripts-dir", scripts).returncode == 0
        assert (scripts / "block.before-vbdkit").read_text() == STOCK
        assert names(scripts) == ["block", "block.before-vbdkit"]

    @pytest.mark.parametrize("at", ["fchmod:when=1", "fsync:when=1", "linkat:when=1", "rename:when=1", "fsync:when=2"])
    def test_a_kill_leaves_a_whole_script_and_loses_nothing(
        self, command: Run, package: Path, scripts: Path, at: str
    ) -> None:
        stock_block(scripts)
        call, when = at.split(":")
        tracer = [need_program("strace"), "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:{when}"]
        killed = subprocess.run(
            [*tracer, PYTHON, "-B", "-m", "vbdkit", "install", "--scripts-dir", scripts],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent)},
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL
        text = (scripts / "block").read_text()
        assert text == STOCK or text.endswith('start("block")\n')
        assert command("install", "--scripts-dir", scripts).returncode == 0
        assert (scripts / "block.before-vbdkit").read_text() == STOCK
        assert names(scripts) == ["block", "block.before-vbdkit"]

    def test_many_installs_at_once_keep_the_right_one(self, command: Run, scripts: Path) -> None:
        stock_block(scripts)
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda _: command("install", "--scripts-dir", scripts), range(8)))
        assert [one.returncode for one in done] == [0] * 8
        assert (scripts / "block.before-vbdkit").read_text() == STOCK
        assert names(scripts) == ["block", "block.before-vbdkit"]

    @pytest.mark.parametrize("target", ["block-stock", "/nowhere/block"])
    def test_a_link_stays_a_link(self, command: Run, scripts: Path, target: str) -> None:
        (scripts / "block-stock").write_text(STOCK)
        (scripts / "block").symlink_to(target)
        command("install", "--scripts-dir", scripts)
        assert (scripts / "block.before-vbdkit").readlink() == Path(target)
        assert (scripts / "block-stock").read_text() == STOCK
        assert command("uninstall", "--scripts-dir", scripts).returncode == 0
        assert (scripts / "block").readlink() == Path(target)
        assert names(scripts) == ["block", "block-stock"]


class TestUninstall:
    def test_brings_back_the_same_file(self, command: Run, scripts: Path) -> None:
        block = stock_block(scripts, 0o740)
        if os.geteuid() == 0:
            os.chown(block, 1, 2)
        before = block.stat()
        command("install", "--scripts-dir", scripts)
        done = command("uninstall", "--scripts-dir", scripts)
        assert done.returncode == 0
        after = block.stat()
        for fact in ("st_ino", "st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_nlink"):
            assert getattr(after, fact) == getattr(before, fact)
        assert names(scripts) == ["block"]

    def test_leaves_nothing_where_nothing_was(self, command: Run, scripts: Path) -> None:
        command("install", "--scripts-dir", scripts)
        done = command("uninstall", "--scripts-dir", scripts)
        assert "nothing" in done.stdout
        assert names(scripts) == []

    def test_does_not_touch_a_script_that_is_not_ours(self, command: Run, scripts: Path) -> None:
        stock_block(scripts)
        done = command("uninstall", "--scripts-dir", scripts)
        assert done.returncode == 1
        assert f"{scripts}/block is not vbdkit's" in done.stderr
        assert (scripts / "block").read_text() == STOCK

    def test_says_where_the_kept_one_is_when_ours_is_gone(self, command: Run, scripts: Path) -> None:
        stock_block(scripts)
        command("install", "--scripts-dir", scripts)
        (scripts / "block").unlink()
        done = command("uninstall", "--scripts-dir", scripts)
        assert done.returncode == 1
        assert f"mv {scripts}/block.before-vbdkit {scripts}/block" in done.stderr

    def test_tells_of_disks_that_are_still_attached(self, command: Run, scripts: Path, tmp_path: Path) -> None:
        command("install", "--scripts-dir", scripts, "--run-dir", tmp_path / "records")
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / "vbd-5-51712").write_text("x")
        assert "disks that vbdkit attached" in command("uninstall", "--scripts-dir", scripts).stdout

    def test_a_user_who_may_not_is_told_about_root(self, command: Run, safe_folder: Path) -> None:
        need_root()
        folder = safe_folder / "scripts"
        folder.mkdir()
        command("install", "--scripts-dir", folder)
        done = command("uninstall", "--scripts-dir", folder, user=65534, group=65534, extra_groups=[])
        assert done.returncode == 1
        assert "sudo vbdkit uninstall" in done.stderr
        assert names(folder) == ["block"]

    def test_tells_of_older_scripts_that_stay(self, command: Run, scripts: Path) -> None:
        for number in ("first", "second"):
            stock_block(scripts, text=STOCK + number)
            command("install", "--scripts-dir", scripts)
        done = command("uninstall", "--scripts-dir", scripts)
        assert "block.before-vbdkit.1" in done.stdout
        assert (scripts / "block").read_text() == STOCK + "second"


class TestDryRun:
    def test_changes_nothing_and_shows_the_script(self, command: Run, scripts: Path, package: Path) -> None:
        stock_block(scripts)
        done = command("install", "--scripts-dir", scripts, "--dry-run")
        assert done.returncode == 0
        assert "from vbdkit.hot import start" in done.stdout
        assert names(scripts) == ["block"]
        assert (scripts / "block").read_text() == STOCK

    def test_refuses_what_the_install_would_refuse(self, command: Run, tmp_path: Path) -> None:
        assert command("install", "--scripts-dir", tmp_path / "none", "--dry-run").returncode == 1


class TestRefusals:
    def test_a_missing_folder_is_named_with_the_way_out(self, command: Run, tmp_path: Path) -> None:
        done = command("install", "--scripts-dir", tmp_path / "none")
        assert done.returncode == 1
        assert f"{tmp_path}/none" in done.stderr
        assert "is Xen's toolstack installed" in done.stderr
        assert "--scripts-dir" in done.stderr
        assert done.stdout == ""

    def test_a_folder_in_the_place_of_the_script(self, command: Run, scripts: Path) -> None:
        (scripts / "block").mkdir()
        assert "neither a file nor a link" in command("install", "--scripts-dir", scripts).stderr

    def test_a_python_that_is_too_old_is_asked_itself(self, command: Run, scripts: Path, safe_folder: Path) -> None:
        old = safe_folder / "python3.9"
        old.write_text("#!/bin/sh\necho '[3, 9, 2]'\necho '[]'\n")
        old.chmod(0o755)
        done = command("install", "--scripts-dir", scripts, "--python", old)
        assert done.returncode == 1
        assert f"{old} is Python 3.9.2; the scripts need 3.11 or newer" in done.stderr
        assert names(scripts) == []

    @pytest.mark.parametrize("program", ["/bin/false", "/bin/echo", "/nowhere/python3", "/etc/passwd"])
    def test_what_is_no_python(self, command: Run, scripts: Path, program: str) -> None:
        done = command("install", "--scripts-dir", scripts, "--python", program)
        assert done.returncode == 1
        assert program in done.stderr
        assert "--python" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_python_that_cannot_import_the_package(self, command: Run, scripts: Path, package: Path) -> None:
        (package / "scripts" / "block.py").write_text("import there_is_no_such_module")
        done = command("install", "--scripts-dir", scripts)
        assert done.returncode == 1
        assert "there_is_no_such_module" in done.stderr
        assert names(scripts) == []

    def test_an_interpreter_path_with_a_space(self, command: Run, scripts: Path, safe_folder: Path) -> None:
        (safe_folder / "my python").symlink_to(PYTHON)
        done = command("install", "--scripts-dir", scripts, "--python", safe_folder / "my python")
        assert done.returncode == 1
        assert "space" in done.stderr

    def test_a_first_line_that_kernels_would_cut(self, command: Run, scripts: Path, safe_folder: Path) -> None:
        deep = safe_folder / ("d" * 120)
        deep.symlink_to(PYTHON)
        done = command("install", "--scripts-dir", scripts, "--python", deep)
        assert done.returncode == 1
        assert "127 bytes" in done.stderr

    def test_an_empty_folder_name_is_wrong_use(self, command: Run) -> None:
        assert command("install", "--scripts-dir", "").returncode == 2

    def test_a_user_who_may_not_write_there_is_told_about_root(self, command: Run, safe_folder: Path) -> None:
        need_root()
        folder = safe_folder / "scripts"
        folder.mkdir()
        done = command("install", "--scripts-dir", folder, user=65534, group=65534, extra_groups=[])
        assert done.returncode == 1
        assert "sudo vbdkit install" in done.stderr
        assert names(folder) == []


class TestRootRunsOnlyWhatRootCanChange:
    """A script that the toolstack starts as root must not come from a place where others write."""

    @pytest.fixture(autouse=True)
    def _as_root(self) -> None:
        need_root()

    def refused(self, command: Run, scripts: Path, path: Path) -> str:
        done = command("install", "--scripts-dir", scripts)
        assert done.returncode == 1
        assert f"root would run what others can change: {path}" in done.stderr
        assert names(scripts) == []
        return done.stderr

    def test_a_package_below_tmp(self, scripts: Path, tmp_path: Path) -> None:
        package = copy_package(tmp_path)

        def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
            return run_command(package, *arguments)

        said = self.refused(command, scripts, Path("/tmp"))
        assert "pip install --target /usr/local/lib/vbdkit" in said

    @pytest.mark.parametrize("inside", ["", "engine", "scripts/__init__.py"])
    def test_a_part_that_belongs_to_somebody_else(
        self, command: Run, scripts: Path, package: Path, inside: str
    ) -> None:
        os.chown(package / inside, 65534, -1)
        said = self.refused(command, scripts, package / inside)
        assert "belongs to nobody" in said
        assert f"chown -R root: {package}" in said

    @pytest.mark.parametrize("mode", [0o020, 0o002])
    def test_a_module_that_others_can_write(self, command: Run, scripts: Path, package: Path, mode: int) -> None:
        (package / "__init__.py").chmod(0o644 | mode)
        said = self.refused(command, scripts, package / "__init__.py")
        assert f"chmod -R go-w {package}" in said

    def test_a_compiled_module_that_others_can_write(self, command: Run, scripts: Path, package: Path) -> None:
        assert command("install", "--scripts-dir", scripts).returncode == 0
        (scripts / "block").unlink()
        for folder in (package, package / "engine"):  # the first one holds what scripts load at once
            for compiled in (folder / "__pycache__").iterdir():
                compiled.chmod(0o666)
                self.refused(command, scripts, compiled)
                compiled.chmod(0o644)

    def test_a_folder_above_it_that_others_can_write(self, command: Run, scripts: Path, package: Path) -> None:
        package.parent.chmod(0o777)
        self.refused(command, scripts, package.parent)

    def test_an_interpreter_that_others_can_write(self, command: Run, scripts: Path, safe_folder: Path) -> None:
        copy = Path(shutil.copy(PYTHON, safe_folder / "python3"))
        copy.chmod(0o775)
        done = command("install", "--scripts-dir", scripts, "--python", copy)
        assert f"{copy} can be written to by its group" in done.stderr

    def test_an_interpreter_that_is_reached_through_an_open_folder(
        self, command: Run, scripts: Path, safe_folder: Path
    ) -> None:
        bridge = safe_folder / "bridge"
        bridge.mkdir()
        (bridge / "python3").symlink_to(PYTHON)
        bridge.chmod(0o777)
        (safe_folder / "python3").symlink_to("bridge/python3")
        done = command("install", "--scripts-dir", scripts, "--python", safe_folder / "python3")
        assert f"{bridge} can be written to by everybody" in done.stderr

    def test_a_folder_of_scripts_that_others_can_write_is_told_of(
        self, command: Run, scripts: Path, safe_folder: Path
    ) -> None:
        safe = safe_folder / "scripts"
        safe.mkdir()
        assert "beware" not in command("install", "--scripts-dir", safe).stdout
        safe.chmod(0o777)
        assert f"{safe} can be written to by everybody" in command("install", "--scripts-dir", safe).stdout

    def test_a_user_may_install_for_himself_from_anywhere(self, tmp_path: Path) -> None:
        folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
        try:
            package = copy_package(folder)
            scripts = folder / "scripts"
            scripts.mkdir()
            for path in (folder, scripts):
                os.chown(path, 65534, 65534)
            done = run_command(package, "install", "--scripts-dir", scripts, user=65534, group=65534, extra_groups=[])
            assert done.returncode == 0, done.stderr
            assert "not compiled" in done.stdout  # the copy is root's
        finally:
            shutil.rmtree(folder)


class TestWaysToHaveThePackage:
    def test_a_wheel_in_a_virtual_environment_runs_under_the_system_python(
        self, wheel: Path, safe_folder: Path, scripts: Path
    ) -> None:
        environment = safe_folder / "venv"
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", environment], check=True)
        pip(f"--python={environment}/bin/python", "install", "--no-deps", wheel)
        done = subprocess.run(
            [environment / "bin" / "vbdkit", "install", "--scripts-dir", scripts],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            umask=0o022,
        )
        assert done.returncode == 0, done.stderr
        lines = (scripts / "block").read_text().splitlines()
        assert not lines[0].startswith(f"#!{environment}")
        assert str(environment / "lib") in lines[3]
        self.runs(scripts)

    def test_a_wheel_in_a_folder_of_its_own(self, wheel: Path, safe_folder: Path, scripts: Path) -> None:
        folder = safe_folder / "own"
        pip("install", "--no-deps", "--target", folder, wheel)
        done = run_command(folder / "vbdkit", "install", "--scripts-dir", scripts)
        assert done.returncode == 0, done.stderr
        self.runs(scripts)

    def test_an_environment_that_points_at_a_checkout(self, package: Path, safe_folder: Path, scripts: Path) -> None:
        environment = safe_folder / "venv"
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", environment], check=True)
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "checkout.pth").write_text(f"{package.parent}\n")
        done = subprocess.run(
            [environment / "bin" / "python", "-m", "vbdkit", "install", "--scripts-dir", scripts],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            umask=0o022,
        )
        assert done.returncode == 0, done.stderr
        assert str(package.parent) in (scripts / "block").read_text()
        self.runs(scripts)

    def runs(self, scripts: Path) -> None:
        run = subprocess.run([scripts / "block", "add"], env={}, capture_output=True, text=True, cwd="/")
        assert "XENBUS_PATH" in run.stderr
        assert run.returncode == 1
