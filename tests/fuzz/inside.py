"""``python -m tests.fuzz.inside TARGET FLAGS...``: one target under atheris, in this process; see ``__main__``.

Imports nothing of vbdkit's before atheris can watch it.
"""

import importlib
import sys


def main() -> None:
    """Hand the process to atheris; it does not come back."""
    _, name, *flags = sys.argv
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["vbdkit"]):
        targets = importlib.import_module("tests.fuzz.targets")
    atheris.Setup([sys.argv[0], *flags], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
