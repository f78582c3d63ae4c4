"""Public names of a room, loaded when asked for: a block script must not pay for what it does not use."""

import sys


def load(room: str, where: dict[str, str], name: str) -> object:
    """Return ``name`` from the module ``where[name]`` of the package ``room``.

    Raises AttributeError, worded as the interpreter would, where the room has no such name.
    """
    if name not in where:
        raise AttributeError(f"module {room!r} has no attribute {name!r}")
    module = f"{room}.{where[name]}"
    __import__(module)
    return getattr(sys.modules[module], name)
