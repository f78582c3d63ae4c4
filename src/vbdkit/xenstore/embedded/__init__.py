"""A xenstore daemon without Xen: the real wire protocol on a unix socket, in a thread or a process of its own.

For trying, testing and the conformance kit. It does what C xenstored 4.17 does where the two can be compared
(tests/xenstore does, operation by operation); it keeps nothing on disk and has no rings to domains.

tree: nodes and operations. transactions: isolation. watches: who is told. permissions: rights and quotas.
operations: requests to replies. server: sockets.
"""

from vbdkit.xenstore.embedded.permissions import Quota
from vbdkit.xenstore.embedded.server import EmbeddedStore

__all__ = ["EmbeddedStore", "Quota"]
