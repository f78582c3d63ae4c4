"""O1 and O2 as one pure function: who else may have what a guest asks for."""

import pytest

from vbdkit.storage.chain import ABOVE, BELOW, HOST, ITSELF, Chain, block_identity, file_identity
from vbdkit.storage.sentence import refusal
from vbdkit.storage.sharing import EXCLUSIVE, GUEST, LOCK, MEMBER, MOUNT, SWAP, User, verdict

Identity = tuple[int, int]
IMAGE, LOOP, DISK, OUTER = file_identity(64512, 4711), block_identity(0x703), block_identity(64512), block_identity(8)
AWAY, SIBLING = block_identity(0x704), file_identity(64512, 4712)
LOCAL = (MOUNT, SWAP, MEMBER, LOCK, EXCLUSIVE)


def chain() -> Chain:
    """A loop device's image that lies on a file system on a disk: the loop device's view."""
    found = Chain(b"/dev/loop3")
    found.add(LOOP, b"/dev/loop3", ITSELF)
    found.add(IMAGE, b"/srv/a.img", BELOW, LOOP)
    found.add(OUTER, b"/dev/loop4", ABOVE, IMAGE)
    found.add(DISK, b"/dev/sda1", HOST, IMAGE)
    return found


PLACES = {LOOP: True, IMAGE: True, OUTER: True, DISK: True, AWAY: False, SIBLING: False}


@pytest.mark.parametrize("same", [False, True], ids=["another-vm", "same-vm"])
@pytest.mark.parametrize("has", "wr")
@pytest.mark.parametrize("asked", "wr")
@pytest.mark.parametrize("kind", [GUEST, *LOCAL])
@pytest.mark.parametrize("identity", PLACES, ids=["itself", "below", "above", "host", "away", "sibling"])
def test_the_whole_table(identity: Identity, kind: str, asked: str, has: str, same: bool) -> None:
    """O1 and O2 for all that can be said of one other user: where, what, how it is used, and whose it is."""
    meets = PLACES[identity]
    if identity == DISK and kind not in (GUEST, LOCK):
        meets = False  # the file system that the file lies on is mounted: that is how it comes to be a file
    if same:
        meets = False
    user = User(kind, identity, has == "w", domid=9)
    against = verdict(chain(), asked == "w", [user], frozenset({9} if same else {8}))
    if meets and "w" in (asked, has):
        assert against is not None
        assert against[0] is user
        assert against[1].identity in (identity, DISK)
    else:
        assert against is None


def test_a_file_of_a_file_system_on_the_target_is_met_through_the_device() -> None:
    found = Chain(b"/dev/sda1")
    found.add(DISK, b"/dev/sda1", ITSELF)
    against = verdict(found, True, [User(GUEST, SIBLING, False, domid=9)], frozenset())
    assert against is not None
    assert against[1].identity == DISK


def test_one_that_is_allowed_hides_no_other() -> None:
    users = [User(GUEST, IMAGE, True, domid=9), User(GUEST, LOOP, True, domid=10)]
    against = verdict(chain(), True, users, frozenset({9}))
    assert against is not None
    assert against[0].domid == 10


def sentence(user: User, writable: bool = True) -> str:
    found = chain()
    return str(refusal(found, writable, user, found.links[user.identity]))


def test_the_sentence_names_guest_disk_mode_identity_and_way_out() -> None:
    text = sentence(User(GUEST, OUTER, True, b"web01", 9, b"xvda", b"backend/vbd/9/51712"))
    for part in ("/dev/loop3", "guest 9 (web01)", "xvda", "read-write", "/dev/loop4", "xl block-detach 9 xvda"):
        assert part in text


def test_the_sentence_for_a_guest_without_name_or_vdev_still_says_how_to_detach() -> None:
    text = sentence(User(GUEST, LOOP, False, b"", 9, b"", b"backend/qdisk/9/51728"))
    assert "guest 9" in text
    assert "xl block-detach 9 51728" in text
    assert "ask for it read-only" in text


@pytest.mark.parametrize(
    ("user", "says"),
    [
        (User(MOUNT, OUTER, True, b"/mnt/a b"), ["mounted", "/dev/loop4", "read-write", "umount /mnt/a b"]),
        (
            User(MOUNT, LOOP, False, b"/data", pid=77, program=b"sleep"),
            ["mounted", "/data", "namespace", "process 77 (sleep)", "nsenter -t 77"],
        ),
        (User(SWAP, LOOP, True, b"/dev/loop3"), ["swap", "swapoff /dev/loop3"]),
        (
            User(MEMBER, LOOP, True, b"/dev/mapper/vg-lv (LVM volume vg/lv)"),
            ["part of /dev/mapper/vg-lv (LVM volume vg/lv)", "vgchange"],
        ),
        (User(LOCK, IMAGE, True, pid=78, program=b"qemu-nbd"), ["locked", "/srv/a.img", "qemu-nbd", "78"]),
        (User(LOCK, IMAGE, True), ["locked", "lslocks"]),
        (User(EXCLUSIVE, LOOP, True, pid=79, program=b"mkfs"), ["exclusively", "79", "mkfs"]),
        (User(EXCLUSIVE, LOOP, True), ["exclusively", "lsblk"]),
    ],
)
def test_the_sentence_for_a_use_in_this_domain(user: User, says: list[str]) -> None:
    text = sentence(user)
    assert "/dev/loop3 is " in text
    assert "read-write;" in text
    for part in says:
        assert part in text


def test_the_sentence_says_what_stands_between() -> None:
    found = chain()
    found.links[OUTER].what = "LVM volume vg/lv"
    user = User(GUEST, OUTER, True, domid=9)
    assert "(through /dev/loop4, LVM volume vg/lv)" in str(refusal(found, True, user, found.links[OUTER]))


def test_braces_in_names_are_only_names() -> None:
    found = Chain(b"/srv/{pid}.img")
    found.add(IMAGE, b"/srv/{pid}.img", ITSELF)
    assert "/srv/{pid}.img" in str(refusal(found, True, User(MOUNT, IMAGE, True, b"/{x}"), found.links[IMAGE]))
