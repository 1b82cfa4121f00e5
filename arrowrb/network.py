"""Which file systems lie on other machines: their mappings are not coherent, and their locks may be lost.

Told by the type that ``/proc/self/mountinfo`` gives for the mount that a path lies on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from .errors import StoreError

MOUNTS: Final = Path("/proc/self/mountinfo")
ALLOW: Final = "ARROWRB_ALLOW_NETWORK"
_NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "9p", "ceph", "lustre", "gpfs", "beegfs"),
        *("pvfs2", "orangefs", "panfs", "wekafs", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
        *("fuse.s3fs", "fuse.goofys", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs", "fuse.moosefs", "fuse.davfs"),
    }
)
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def check_local(path: Path) -> None:
    """Refuse to write a store on another machine's disk, unless the environment allows it.

    Raises:
        StoreError: if it is one; names the type.
    """
    if os.environ.get(ALLOW, "") not in ("", "0"):
        return
    kind = file_system(path)
    if kind in _NETWORK:
        raise StoreError(
            f"{path} lies on a network file system ({kind}), which keeps no promise of arrowrb's: mappings and locks "
            f"are not those of one machine. Choose a local disk, and copy with Store.backup; or set {ALLOW}=1 to take "
            "the risk."
        )


def file_system(path: Path) -> str | None:
    """The type of the file system on which a path lies, or will lie; None where the machine does not tell."""
    place = os.path.realpath(path)
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, kind = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        inside = mount in ("/", place) or place.startswith(f"{mount}/")
        if inside and len(mount) >= len(found):  # of several at one place, the last one is on top
            found, kind = mount, after.split(" ")[0]
    return kind
