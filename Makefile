# The commands of README.md. PYTHON names the interpreter for the virtual environment.
PYTHON ?= python3
export PYTHON
# pytest's arguments: make check PYTEST='tests/engine -x'
PYTEST ?= tests

.PHONY: help try check lint types test bench bench-devd check-faults sharing check-fuzz check-stress check-xen check-xen-short wheel clean
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

try:	## set up a virtual environment here and show a guest getting its disk
	@tools/setup try
	@.venv/bin/vbdkit try

check: .setup lint types test	## lint, types and tests

.PHONY: .setup
.setup:
	@tools/setup check

lint: .setup	## ruff
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

types: .setup	## mypy --strict
	.venv/bin/python -m mypy

test: .setup	## pytest
	.venv/bin/python -m pytest $(PYTEST)

bench: .setup	## timings beside Xen's stock scripts
	.venv/bin/python -m bench

sharing: .setup	## every case of who may have what, before Xen's stock script and vbdkit (root, apt)
	.venv/bin/python -m tests.sharing

check-faults: .setup	## a kill and each error at every system call of add and remove (root; 10 minutes or more)
	.venv/bin/python -m tests.faults

bench-devd: .setup	## a driver domain's daemon with 500 disks coming and going
	.venv/bin/python -m bench devd

check-xen: .setup	## the same on a real Xen under QEMU (root, apt; minutes)
	.venv/bin/python -m tests.xenrig

check-xen-short: .setup	## one guest with a disk, one refused (what CI runs)
	.venv/bin/python -m tests.xenrig --short

check-stress: .setup	## 200 rounds of 64 scripts with kills, on both of Xen's stores (root; a quarter of an hour)
	.venv/bin/python -m tests.stress

check-fuzz:	## a minute of fuzzing and many more hostile inputs
	@tools/setup fuzz
	.venv/bin/python -m tests.fuzz --seconds 60
	VBDKIT_THOROUGH=10 .venv/bin/python -m pytest -q tests/hostile tests/fuzz

wheel: .setup	## build dist/*.whl
	.venv/bin/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

clean:	## remove what make has made
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
