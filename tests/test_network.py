"""File systems of other machines are told by their mounts, and refused for writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowrb import network
from arrowrb.errors import StoreError
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / {home} rw - nfs4 server:/home rw,vers=4.2
31 30 0:26 / {home}/my\\040scratch rw - tmpfs none rw
32 22 0:27 / {home}stead rw - xfs /dev/vdb rw
33 22 0:28 / {home}/cloud rw - fuse.s3fs s3fs rw
34 33 0:29 / {home}/cloud rw - ext4 /dev/vdc rw
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on another machine, as far as can be told."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "mounts").write_text(MOUNTS.format(home=home))
    monkeypatch.setattr(network, "MOUNTS", tmp_path / "mounts")
    return home


def test_the_innermost_and_topmost_mount_counts(home: Path) -> None:
    (home.parent / "link").symlink_to(home)
    kinds = {
        home: "nfs4",
        home / "runs" / "new": "nfs4",
        home.parent / "link" / "runs": "nfs4",
        home / "my scratch" / "x": "tmpfs",
        home / "my": "nfs4",
        home.with_name("homestead") / "x": "xfs",
        home / "cloud" / "x": "ext4",
        home.parent: "ext4",
    }
    assert {path: network.file_system(path) for path in kinds} == kinds


def test_stores_are_refused_unless_forced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*ARROWRB_ALLOW_NETWORK=1"):
        Store.create(home / "store", plain_schema())
    assert not list(home.iterdir())
    monkeypatch.setenv("ARROWRB_ALLOW_NETWORK", "1")
    with Store.create(home / "store", plain_schema()) as store:
        store.extend(plain_batch(3))
    monkeypatch.setenv("ARROWRB_ALLOW_NETWORK", "0")
    with pytest.raises(StoreError, match="nfs4"):
        Store.open(home / "store", mode="a")
    with Store.open(home / "store") as store:  # nobody writes it: what lies still can be read from anywhere
        assert len(store) == 3


def test_a_machine_that_does_not_tell_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MOUNTS", tmp_path / "nothing")
    Store.create(tmp_path / "store", plain_schema()).close()
    monkeypatch.undo()
    assert network.file_system(tmp_path) not in (None, "")
