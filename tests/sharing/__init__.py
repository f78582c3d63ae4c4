"""Who may have what: cases of sharing on real storage, each with its right decision.

`table` lists the cases as data. A case is put together from a way in which storage stands (`storage`), a user that
has it (`users`) and the domains that meet (`domains`); `machine` builds and takes back, `trial` lets a block script
decide. test_table.py holds vbdkit's script to the right decisions; `python -m tests.sharing` (make sharing) shows Xen's
stock script beside it.
"""
