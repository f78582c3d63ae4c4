"""O1 and O2 as one pure function: who else may have what a guest asks for."""

import pytest

from vbdkit.storage.chain import ABOVE, BELOW, ITSELF, Chain, block_identity, file_identity
from vbdkit.storage.sentence import refusal
from vbdkit.storage.sharing import EXCLUSIVE, GUEST, MOUNT, User, verdict

IMAGE, LOOP, DISK = file_identity(64512, 4711), block_identity(0x703), block_identity(0x801)


def chain() -> Chain:
    found = Chain(b"/srv/a.img")
    found.add(IMAGE, b"/srv/a.img", ITSELF)
    found.add(LOOP, b"/dev/loop3", ABOVE)
    found.add(DISK, b"/dev/sda1", BELOW)
    return found


@pytest.mark.parametrize(
    ("asked", "has", "allowed"), [("w", "w", False), ("w", "r", False), ("r", "w", False), ("r", "r", True)]
)
@pytest.mark.parametrize("identity", [IMAGE, LOOP, DISK])
def test_o2_readers_bear_readers_only(asked: str, has: str, allowed: bool, identity: tuple[int, int]) -> None:
    other = User(GUEST, identity, has == "w", domid=9)
    assert (verdict(chain(), asked == "w", [other], frozenset()) is None) == allowed


def test_something_else_is_no_conflict() -> None:
    others = [User(GUEST, block_identity(0x704), True, domid=9), User(GUEST, file_identity(64512, 4712), True, domid=9)]
    assert verdict(chain(), True, others, frozenset()) is None


def test_the_same_vm_is_no_other() -> None:
    other = User(GUEST, IMAGE, True, domid=9)
    assert verdict(chain(), True, [other], frozenset({9})) is None
    assert verdict(chain(), True, [other], frozenset({8})) is not None


def test_one_that_is_allowed_hides_no_other() -> None:
    users = [User(GUEST, IMAGE, True, domid=9), User(GUEST, LOOP, True, domid=10)]
    against = verdict(chain(), True, users, frozenset({9}))
    assert against is not None
    assert against[0].domid == 10


def test_a_mount_of_the_device_counts_and_the_file_system_that_a_file_lives_in_does_not() -> None:
    assert verdict(chain(), True, [User(MOUNT, LOOP, True, b"/mnt")], frozenset()) is not None
    assert verdict(chain(), False, [User(MOUNT, LOOP, False, b"/mnt")], frozenset()) is None
    assert verdict(chain(), True, [User(MOUNT, DISK, True, b"/srv")], frozenset()) is None


def sentence(user: User, writable: bool = True) -> str:
    found = chain()
    return str(refusal(found, writable, user, found.links[user.identity]))


def test_the_sentence_names_guest_disk_mode_identity_and_way_out() -> None:
    text = sentence(User(GUEST, LOOP, True, b"web01", 9, b"xvda", b"backend/vbd/9/51712"))
    for part in ("/srv/a.img", "guest 9 (web01)", "xvda", "read-write", "/dev/loop3", "xl block-detach 9 xvda"):
        assert part in text


def test_the_sentence_for_a_guest_without_name_or_vdev_still_says_how_to_detach() -> None:
    text = sentence(User(GUEST, IMAGE, False, b"", 9, b"", b"backend/qdisk/9/51728"))
    assert "guest 9" in text
    assert "xl block-detach 9 51728" in text
    assert "ask for it read-only" in text


def test_the_sentence_names_the_mount_point() -> None:
    assert "umount /mnt/a b" in sentence(User(MOUNT, LOOP, True, b"/mnt/a b"))


def test_the_sentence_for_an_exclusive_holder_says_where_to_look() -> None:
    assert "lsblk" in sentence(User(EXCLUSIVE, LOOP, True))
