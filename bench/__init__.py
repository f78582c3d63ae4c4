"""Timings of the block script beside Xen's own, on this machine, against Xen's own C xenstored (`make bench`).

`stage` sets up what a script needs to run as it does in dom0, `timing` starts processes and watches the lock,
`contenders` are what is compared, `report` prints. Nothing measured earlier is kept or shown.
"""
