"""Reads zip archives, after checking the table of contents."""

from __future__ import annotations

import zipfile

from model.importers.refusals import Budget, Refusal, damaged, shown

_MAX_MEMBERS = 100_000
_DEFLATE_LIMIT = 1032  # no deflated byte can expand to more
_ENCRYPTED = 1


class ZipMembers:
    """The members of a zip archive; nothing is ever written to the disk.

    Attributes:
        names: of all members, in the archive's order.
    """

    def __init__(self, archive: zipfile.ZipFile, budget: Budget):
        """Checks the table of contents.

        Raises:
            Refusal: a name leads out of the archive or occurs twice, or a member is encrypted, uses
                an unsupported compression, or declares more bytes than it can contain.
        """
        if len(archive.infolist()) > _MAX_MEMBERS:
            raise Refusal(
                f"it has more than {_MAX_MEMBERS:,} members, more than any weight file has"
            )
        for member in archive.infolist():
            _check_member(member)
        self.names = archive.namelist()
        self._sizes = {member.filename: member.file_size for member in archive.infolist()}
        if len(self._sizes) < len(self.names):
            raise damaged("two members of the archive have the same name")
        self._archive = archive
        self._budget = budget

    def read(self, name: str) -> bytes:
        """Reads the content of one member.

        Raises:
            Refusal: there is no such member, its content is damaged, or too large.
        """
        if name not in self._sizes:
            raise damaged(f"the archive does not contain {shown(name)}")
        size = self._sizes[name]
        self._budget.charge(size)
        content = self._archive.read(name)
        if len(content) != size:
            raise damaged(
                f"member {shown(name)} of the archive has a wrong size of {len(content)} bytes"
            )
        return content


def _check_member(member: zipfile.ZipInfo) -> None:
    name = shown(member.filename)
    parts = member.filename.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise Refusal(
            f"its member {name} would be unpacked outside of the archive's folder: the file is "
            "unsafe, get the weights from another source"
        )
    if member.flag_bits & _ENCRYPTED:
        raise Refusal(f"its member {name} is encrypted: give a file without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refusal(f"its member {name} uses an unsupported compression: save it again")
    growth = 1 if member.compress_type == zipfile.ZIP_STORED else _DEFLATE_LIMIT
    if member.file_size > growth * member.compress_size:
        raise damaged(f"member {name} of the archive declares more bytes than it can contain")
