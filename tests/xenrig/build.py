"""Makes what the rig boots: Xen, a dom0 kernel and root file system, a guest kernel and its initramfs.

Everything is Debian bookworm's own, unpatched, straight from the host's mirrors. An image is made with or without
STORAGE_PACKAGES, under a `cache` of its own:

    image/xen, image/vmlinux, image/initrd     what QEMU is given to boot
    image/dom0.img                             dom0's root file system, kernels and initramfs for guests in /rigguest
    image/stamp                                what it was made from; another stamp here means: build again
"""

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

SUITE = "bookworm"
HOST_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "setpriv": "util-linux",
}
# seabios is only recommended by qemu-system-x86, and nothing boots without it.
EXTRA_HOST_PACKAGES = ["seabios"]
DOM0_PACKAGES = ["linux-image-amd64", "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xenstore-utils"]
DOM0_PACKAGES += ["python3-minimal", "libpython3-stdlib", "udev", "busybox-static", "e2fsprogs", "kmod", "procps"]
# What dom0's storage cases need on top; the image that CI boots does without.
STORAGE_PACKAGES = ["lvm2", "thin-provisioning-tools", "mdadm", "cryptsetup-bin", "drbd-utils", "fdisk"]
STORAGE_PACKAGES += ["qemu-utils", "qemu-system-xen", "open-iscsi"]
# Dead weight in the image: documentation, and drivers of hardware that QEMU does not show us.
LEFT_OUT = [f"/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")] + [
    f"/lib/modules/*/kernel/{part}/*" for part in ("drivers/net", "drivers/gpu", "drivers/media", "sound")
]
# Our own initramfs boots dom0: Debian's, which takes half a minute to make, is not needed.
NO_INITRAMFS = (
    'chroot "$1" dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs'
    ' && ln -s /bin/true "$1/usr/sbin/update-initramfs"'
)
GUEST = Path(__file__).parent / "guest"


class CannotBuild(Exception):
    """The machine lacks what the rig needs and cannot be given it; the message is one line for people."""


def _stamp(packages: list[str]) -> str:
    """What the image is made from, as one hash: this module, the scripts in guest/, more packages."""
    parts = [Path(__file__), *sorted(GUEST.iterdir())]
    made = [part.name.encode() + b"\0" + part.read_bytes() for part in parts]
    return hashlib.sha256(b"\0".join(made + [package.encode() for package in packages])).hexdigest()


def ensure_built(cache: Path, packages: list[str]) -> None:
    """Install the host's packages and build the image with `packages` in dom0, as far as that has not been done.

    Raises CannotBuild where it is not possible here.
    """
    _host_packages()
    image = cache / "image"
    made_from = image / "stamp"
    if made_from.exists() and made_from.read_text() == _stamp(packages):
        return
    began = time.monotonic()
    print("building Debian's Xen, dom0 and guest (a minute or two)", flush=True)
    shutil.rmtree(image, ignore_errors=True)
    image.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="rootfs.") as root:
        _root_file_system(Path(root), DOM0_PACKAGES + packages)
        _boot_files(Path(root), image)
        _disk_image(Path(root), image / "dom0.img")
    made_from.write_text(_stamp(packages))
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)


def _host_packages() -> None:
    missing = [package for command, package in HOST_PACKAGES.items() if not shutil.which(command)]
    if os.uname().machine != "x86_64":
        raise CannotBuild("the rig's Xen is for x86_64")
    if os.geteuid() != 0:
        raise CannotBuild("not root")
    if not shutil.which("apt-get"):
        raise CannotBuild("no apt-get: the rig is made of Debian's packages")
    if not missing:
        return
    print("installing", *missing, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, *EXTRA_HOST_PACKAGES]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise CannotBuild(f"{' '.join(command[:2])} failed: {reason}")


def _mirrors() -> Iterator[str]:
    """The host's own mirrors as sources of SUITE; Debian's public ones where the host is no bookworm."""
    form = ["--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    listed = subprocess.run(["apt-get", "indextargets", *form], capture_output=True, text=True).stdout
    sites = {release: site for site, _, release in (line.partition(" ") for line in listed.splitlines())}
    yield f"deb {sites.get(SUITE, 'http://deb.debian.org/debian')} {SUITE} main"
    security = f"{SUITE}-security"
    yield f"deb {sites.get(security, 'http://deb.debian.org/debian-security')} {security} main"


def _root_file_system(root: Path, packages: list[str]) -> None:
    command = ["mmdebstrap", "--mode=root", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT)]
    command += [f"--essential-hook={NO_INITRAMFS}", SUITE, str(root), *_mirrors()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise CannotBuild(f"mmdebstrap failed: {reason}")


def _boot_files(root: Path, image: Path) -> None:
    kernel = max(path.name for path in (root / "lib/modules").iterdir())
    (image / "xen").write_bytes(zlib.decompress((root / "boot/xen-4.17-amd64.gz").read_bytes(), wbits=31))
    vmlinux = _unpacked((root / f"boot/vmlinuz-{kernel}").read_bytes())
    (image / "vmlinux").write_bytes(vmlinux)
    _initramfs(root, kernel, "initramfs-init", ["virtio_pci", "virtio_blk", "ext4"], image / "initrd")
    guest = root / "rigguest"
    guest.mkdir()
    (guest / "vmlinux").write_bytes(vmlinux)
    _initramfs(root, kernel, "domu-init", ["xen-blkfront", "ext4"], guest / "initrd")
    modules = ["xen-blkfront", "ext4", "overlay"]
    _initramfs(root, kernel, "driver-initramfs-init", modules, guest / "driver-initrd")
    for name in ("rig-init", "rig-agent", "driver-init"):
        shutil.copy(GUEST / name, root / "sbin" / name)
    (root / "rig").mkdir()


def _unpacked(bzimage: bytes) -> bytes:
    """The ELF kernel inside: under emulation this saves seconds at each start of a domain.

    Offsets from Linux' Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    """
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The last four bytes are the size, not a part of the stream: a decompressor object leaves them alone.
    return lzma.LZMADecompressor().decompress(bzimage[start : start + length])


def _initramfs(root: Path, kernel: str, init: str, modules: list[str], out: Path) -> None:
    """busybox, `init` and the modules, with the order to load them in /mod/order."""
    command = ["chroot", str(root), "/sbin/modprobe", "-a", "-S", kernel, "--show-depends", *modules]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # crc32c-intel and its like refuse to load on the emulated CPU; the generic ones are listed as well.
    paths = [line.split()[1] for line in listed.splitlines() if line.startswith("insmod") and "intel" not in line]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("bin", "proc", "sys", "dev", "root", "mod", "mnt"):
            (tree / name).mkdir()
        shutil.copy(root / "bin/busybox", tree / "bin")
        shutil.copy(GUEST / init, tree / "init")
        ordered = list(dict.fromkeys(paths))
        for path in ordered:
            shutil.copy(root / path.lstrip("/"), tree / "mod")
        (tree / "mod/order").write_text("".join(Path(path).name + "\n" for path in ordered))
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        with out.open("wb") as archive:
            command = ["cpio", "-o", "-H", "newc", "--quiet"]
            subprocess.run(command, check=True, cwd=tree, input=names.encode(), stdout=archive)


def _disk_image(root: Path, out: Path) -> None:
    with out.open("wb") as file:
        file.truncate(6 << 30)
    features = ["-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"]
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *features, "-d", str(root), str(out)], check=True)
