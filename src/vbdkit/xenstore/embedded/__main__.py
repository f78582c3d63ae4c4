"""``python -m vbdkit.xenstore.embedded``: the embedded store as a daemon in the foreground."""

import argparse
import contextlib
import signal
import sys

from vbdkit.xenstore.embedded.server import EmbeddedStore


def _domain(text: str) -> tuple[int, str]:
    number, colon, path = text.partition(":")
    if not (number.isdigit() and colon and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form DOMID:PATH, such as 5:/tmp/store/domain-5")
    return int(number), path


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 then, 1 where a socket cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m vbdkit.xenstore.embedded",
        description="A xenstore daemon for hosts without Xen. Prints one line when it is ready, serves until "
        "SIGTERM or SIGINT, and removes its sockets. Nothing is kept.",
        epilog="Clients find it through XENSTORED_PATH=PATH: Xen's own xenstore-ls and its kin as well.",
    )
    parser.add_argument("--socket", required=True, metavar="PATH", help="unix socket for clients with all rights")
    parser.add_argument(
        "--domid", type=int, default=0, metavar="N", help="relative paths are below /local/domain/N (default: 0)"
    )
    parser.add_argument(
        "--for-domain",
        type=_domain,
        action="append",
        default=[],
        metavar="N:PATH",
        help="one more socket, for clients with the rights, quota and relative paths of domain N; may be repeated",
    )
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        try:
            store = EmbeddedStore(options.socket, options.domid)
            stack.callback(store.close)
            for domid, path in options.for_domain:
                store.listen(path, domid)
        except OSError as error:
            print(f"{parser.prog}: cannot listen: {error}", file=sys.stderr)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: store.stop())
        print(f"xenstore is ready at {options.socket}", flush=True)
        store.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
