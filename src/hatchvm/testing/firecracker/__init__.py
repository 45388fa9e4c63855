"""A stand-in for Firecracker: a process with its API, its files and its sockets, whose guest is a record in memory.

It is faithful where a driver can see it, and stricter: what Firecracker deprecates or overlooks is refused. Every
request is checked against the published description of its version (`api`), and written down with what is wrong about
it (`record`). The guest (`guest`) notices memory, a disk and device state that do not fit one another.

`binary.binary(folder)` makes an executable for HATCH_FIRECRACKER_BIN.
"""
