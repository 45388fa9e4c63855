"""Users and groups of an image: who its command runs as, and that root can log in."""

from __future__ import annotations

from typing import Final

from hatchvm.base.errors import Invalid

#: A shell of ours, for images whose root has none.
SHELL: Final = "/.hatch/bin/sh"
_MAX_ID: Final = 2**32 - 2


class Users:
    """`/etc/passwd` and `/etc/group` as lines; what is damaged in them is left as it is."""

    def __init__(self, passwd: list[str], group: list[str]) -> None:
        self.passwd = passwd
        self.group = group

    def owner(self, user: str) -> tuple[int, int, str]:
        """(uid, gid, home) for an image's `User`: a name or uid, perhaps `:` and a group's name or gid, or nothing.

        A uid without an entry gets one. Raises Invalid for a name without one.
        """
        who, _, group = user.partition(":")
        uid, gid, home = self._user(who or "0")
        return uid, self._gid(group) if group else gid, home

    def shell_of_root(self) -> str:
        """What root's shell is, or nothing."""
        return next(
            (line.split(":")[6] for line in self.passwd if line.startswith("root:") and line.count(":") == 6), ""
        )

    def give_root(self, shell: str) -> None:
        """Make it root's shell."""
        others = [line for line in self.passwd if not line.startswith("root:")]
        self.passwd = [f"root:x:0:0:root:/root:{shell}", *others]

    def _user(self, who: str) -> tuple[int, int, str]:
        for line in self.passwd:
            fields = line.split(":")
            if len(fields) == 7 and who in (fields[0], fields[2]) and fields[2].isdecimal() and fields[3].isdecimal():
                return int(fields[2]), int(fields[3]), fields[5] or "/"
        uid = _number(who, f'its user "{who[:100]}" is not in its /etc/passwd')
        self.passwd.append(f"user{uid}:x:{uid}:0::/:/bin/false")
        return uid, 0, "/"

    def _gid(self, group: str) -> int:
        for line in self.group:
            fields = line.split(":")
            if len(fields) == 4 and group in (fields[0], fields[2]) and fields[2].isdecimal():
                return int(fields[2])
        return _number(group, f'its group "{group[:100]}" is not in its /etc/group')


def _number(text: str, otherwise: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID:
        return int(text)
    raise Invalid(otherwise)
