"""Many scripts at once, with kills, on Xen's own stores: what holds whatever happens in between.

``farm`` is a host with many guests, ``test_farm.py`` a short run of it, ``python -m tests.stress``
(`make check-stress`) the long one.
"""
