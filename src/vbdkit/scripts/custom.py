"""A custom script in Python: a class of storage becomes a block script. What its file, or an installed stub, calls."""

import posix
import sys

from vbdkit import platform
from vbdkit.datapaths import load
from vbdkit.engine.custom import CUSTOM, Custom, Storage, add
from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR, fill_in, main_environment, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from vbdkit.engine.datapath import Datapath

# Seconds. Longer than block's, since this is for what takes long; the toolstack kills a script at 40 (C6).
TIME_LIMIT = 36.0


def main(
    system: str = "",
    storage: "type[Storage] | str" = Storage,
    folder: bytes = b"",
    run_dir: bytes = RUN_DIR,
    lock_dir: bytes = LOCK_DIR,
    time_limit: float = TIME_LIMIT,
    **settings: bytes,
) -> "NoReturn":
    """Run and end the process. ``storage``: the class, or ``module:Class`` to be imported (``folder``: from there).

    ``settings`` are those that only this system has (its package's ``configure``).
    """
    fill_in()
    storage = storage_class(storage, folder)
    if settings:
        platform.load(system or platform.current()).configure(**settings)
    argv, environ = main_environment()
    words = argv[1:]
    if any(word.startswith(b"-") for word in words[:1]) or (
        words and words[0].decode("utf-8", "replace") in verbs(storage)
    ):
        from vbdkit.scripts.author import answer

        posix._exit(answer(storage, argv, environ, system, run_dir, lock_dir, time_limit))
    script = argv[0] if argv[0].startswith(b"/") else posix.getcwdb() + b"/" + argv[0]
    kind = storage

    def datapaths(name: str) -> "Datapath":
        return Custom(kind) if name == CUSTOM else load(name)

    posix._exit(
        run(
            argv,
            environ,
            datapaths,
            system,
            run_dir,
            lock_dir,
            time_limit,
            own_process=True,
            add=lambda this: add(this, kind(this), script),
        )
    )


def verbs(storage: "type[Storage]") -> "dict[str, str]":
    """Return the words that a storage's script takes beyond add and remove (S3), and the method of each."""
    return {name.replace("_", "-"): name for name in dir(storage) if getattr(getattr(storage, name), "is_verb", False)}


def storage_class(storage: "type[Storage] | str", folder: bytes = b"") -> "type[Storage]":
    """Return the class that a script serves, with a name; one named ``module:Class`` is imported, from ``folder``."""
    if isinstance(storage, str):
        module, _, leaf = storage.partition(":")
        if folder:
            sys.path.append(folder.decode("utf-8", "surrogateescape"))
        __import__(module)
        storage = getattr(sys.modules[module], leaf)
    if not (isinstance(storage, type) and issubclass(storage, Storage)):
        raise TypeError(f"{storage!r} is no subclass of vbdkit.custom.Storage")
    storage.name = storage.name or storage.__name__.lower()
    return storage
