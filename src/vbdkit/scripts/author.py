"""What a custom script answers besides add and remove: --describe, --check-host, --help, its own verbs, --detach.

Off the hot path: people and ``vbdkit gc`` ask these.
"""

import inspect
import json
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

from vbdkit import __version__, platform
from vbdkit.datapaths import load
from vbdkit.engine.custom import Authors, Storage, take_back
from vbdkit.engine.record import Records, read_lines
from vbdkit.engine.script import Run, as_failure
from vbdkit.engine.tool import find, run_tool
from vbdkit.protocol.failure import Failure, printable, shown
from vbdkit.protocol.vbd import Vbd, parse_backend_path
from vbdkit.scripts.custom import verbs


def answer(
    storage: type[Storage],
    argv: Sequence[bytes],
    environ: Mapping[bytes, bytes],
    system: str,
    run_dir: bytes,
    lock_dir: bytes,
    time_limit: float,
) -> int:
    """Answer one question and return the exit status: 0 yes or done, 1 no, 2 wrong use."""
    name = shown(argv[0].rpartition(b"/")[2])
    word, *rest = (os.fsdecode(text) for text in argv[1:])
    path = os.fsencode(rest[0]) if word == "--detach" and rest else environ.get(b"XENBUS_PATH", b"")
    vbd = parse_backend_path(path) or Vbd(b"", b"no-disk", 0, 0)
    end = time.monotonic() + time_limit
    here = platform.load(system or platform.current())
    run = Run(name, word, vbd, here, load, Records(run_dir), lock_dir, end - 1, end, environ)
    try:
        if word in ("--help", "-h"):
            text = _help(storage, name)
        elif word == "--describe":
            text = json.dumps(describe(storage), indent=2)
        elif word == "--check-host":
            return _check_host(storage(run), run)
        elif word == "--detach":
            if not vbd.path:
                raise Failure("--detach takes a backend path, and a record on stdin; vbdkit gc uses it")
            run.guard.arm()
            take_back(run, storage, _record(sys.stdin.read()))
            text = ""
        elif word.startswith("-"):
            print(f"{name}: there is no option {printable(word)}; --help tells", file=sys.stderr)
            return 2
        else:
            method = getattr(storage(run), verbs(storage)[word])
            try:
                inspect.signature(method).bind(*rest)
            except TypeError as error:
                print(f"{name} {word}: {error}", file=sys.stderr)
                return 2
            run.guard.arm()
            with Authors(word):
                text = method(*rest) or ""
    except (Failure, OSError) as error:
        print(f"{name}: {as_failure(error)}", file=sys.stderr)
        return 1
    if text:
        print(text)
    sys.stdout.flush()
    return 0


def describe(storage: type[Storage]) -> dict[str, object]:
    """Return what a script says of itself: its manifest."""
    return {
        "name": storage.name,
        "description": _first_line(storage),
        "syntax": storage.syntax,
        "example": storage.example,
        "tools": dict(storage.tools),
        "modules": list(storage.modules),
        "verbs": ["add", "remove", *verbs(storage)],
        "path-only": storage.path_only,
        "vbdkit": __version__,
    }


def _help(storage: type[Storage], name: str) -> str:
    lines = [
        f"{name}: a block script for Xen. {_first_line(storage)}",
        "",
        f"In a guest's configuration:  disk = [ 'script={name},vdev=xvda,target={storage.example or storage.syntax}' ]",
        f"The target is                {storage.syntax}",
        "",
        f"usage: {name} add | remove      the toolstack calls this, with XENBUS_PATH in the environment",
        f"       {name} --describe        what it is, as JSON",
        f"       {name} --check-host      whether this host has what it needs; exit status 1 where not",
    ]
    for word, method in verbs(storage).items():
        about = (getattr(storage, method).__doc__ or "").strip().split("\n")[0]
        lines.append(f"       {name} {word:<17} {about}".rstrip())
    doc = (storage.__doc__ or "").strip().partition("\n")[2]
    return "\n".join(lines) + ("\n\n" + textwrap.dedent(doc).strip() if doc.strip() else "")


def _first_line(storage: type[Storage]) -> str:
    return (storage.__doc__ or "").strip().split("\n")[0]


def _check_host(storage: Storage, run: Run) -> int:
    """Print what is there and what is missing."""
    missing = 0
    for program, package in storage.tools.items():
        path = find(os.fsencode(program))
        missing += path is None
        hint = f" (the package {package} has it)" if package else ""
        print(f"ok       {shown(path)}" if path else f"missing  the program {program}{hint}")
    for module in storage.modules:
        there = _has_module(run, module)
        missing += not there
        print(f"{'ok     ' if there else 'missing'}  the kernel's module {module}")
    with Authors("check_host"):
        troubles = list(storage.check_host())
    for trouble in troubles:
        missing += 1
        print(f"missing  {trouble}")
    if not missing:
        print(f"this host can serve {storage.name}")
    sys.stdout.flush()
    return 1 if missing else 0


def _has_module(run: Run, module: str) -> bool:
    """Whether the kernel has a module, or could load it."""
    if os.path.exists("/sys/module/" + module.replace("-", "_")):
        return True
    try:
        run_tool(run, [b"modprobe", b"--dry-run", b"--quiet", os.fsencode(module)])
    except Failure:
        return False
    return True


def _record(text: str) -> dict[str, str]:
    try:
        return read_lines(text.splitlines())
    except ValueError as error:
        raise Failure("{line} on stdin is no line of a record", line=error) from None
