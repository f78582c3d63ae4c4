"""A real Xen for the tests: Debian's dom0 under QEMU, on any x86 machine, without hardware virtualisation.

`python -m tests.xenrig` is the command (`make check-xen`). `build` makes the disk image, `rig` boots it and runs a
command in dom0; `dom0` and `cases` run there. Nothing of vbdkit is imported here: what is tested comes as a wheel.
"""
