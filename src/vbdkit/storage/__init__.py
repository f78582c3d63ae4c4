"""The sharing rule as data and functions without I/O: identities, the chain, users, the verdict and its sentence."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.storage.chain import Chain, Link, block_identity, file_identity
    from vbdkit.storage.sentence import refusal
    from vbdkit.storage.sharing import User, verdict

__all__ = ["Chain", "Link", "User", "block_identity", "file_identity", "refusal", "verdict"]

_WHERE = {
    "Chain": "chain",
    "Link": "chain",
    "User": "sharing",
    "block_identity": "chain",
    "file_identity": "chain",
    "refusal": "sentence",
    "verdict": "sharing",
}


def __getattr__(name: str) -> object:
    from vbdkit._lazy import load

    return load(__name__, _WHERE, name)
