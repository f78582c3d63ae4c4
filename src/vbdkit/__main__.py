"""``python -m vbdkit``: the command, where its script is not on the PATH."""

import sys

from vbdkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
