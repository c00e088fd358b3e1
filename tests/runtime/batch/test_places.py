"""Addresses behave as folders do; through fsspec's own file system for local files, and its one in memory."""

from pathlib import Path

import pytest
from fid.runtime.batch import places
from fid.runtime.batch.manifest import Line, Manifest, read_manifests
from fid.runtime.batch.places import Address, Folder, Item, source_place
from fid.runtime.errors import FidError, InputError

pytest.importorskip("fsspec")


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return Address(f"{request.param}://{tmp_path}/there")


def put(place: Address | Folder, name: str, content: bytes) -> None:
    with place.writing(name) as path:
        path.write_bytes(content)


def test_what_is_written_is_found_and_read_under_its_name(place: Address) -> None:
    assert list(place.items()) == []
    put(place, "a.jpg", b"one")
    put(place, "b/c.jpg", b"three")
    put(place, "a.jpg", b"two and more")
    found = sorted(place.items(), key=lambda item: item.name)
    assert [(item.name, item.size) for item in found] == [("a.jpg", 12), ("b/c.jpg", 5)]
    assert all(item.changed for item in found), "a time or a tag tells one content from another"
    for name, content in (("a.jpg", b"two and more"), ("b/c.jpg", b"three")):
        with place.reading(name) as path:
            assert path.name == Path(name).name
            assert path.read_bytes() == content
        assert not path.exists()


def test_a_folder_and_its_address_hold_the_same(tmp_path: Path) -> None:
    folder, address = Folder(tmp_path), source_place(f"file://{tmp_path}")
    put(folder, "a/b.jpg", b"x")
    put(folder, ".hidden/b.jpg", b"x")
    assert [item.name for item in folder.items()] == [item.name for item in address.items()] == ["a/b.jpg"]


def break_off(place: Address) -> None:
    with place.writing("a.jpg") as path:
        path.write_bytes(b"half")
        raise RuntimeError


def test_a_failure_leaves_nothing_and_says_where(place: Address) -> None:
    with pytest.raises(RuntimeError):
        break_off(place)
    assert list(place.items()) == []
    with pytest.raises(FidError, match=r"there/nobody.jpg could not be read"), place.reading("nobody.jpg"):
        pass


def test_a_manifest_at_an_address_is_gone_on_with(place: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "UPLOAD_S", -1.0)
    with Manifest(place, "manifest.jsonl") as manifest:
        manifest.add(Line("a.jpg", "a.png", 1, "0", "x"))
        assert len(read_manifests(place, ["manifest.jsonl"])) == 1, "before the end, too"
    with Manifest(place, "manifest.jsonl") as manifest:
        manifest.add(Line("b.jpg", "b.png", 1, "0", "x"))
    assert sorted(read_manifests(place, ["manifest.jsonl"])) == ["a.jpg", "b.jpg"]


def test_an_unknown_protocol_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"nowhere://x cannot be opened: Protocol not known: nowhere"):
        list(source_place("nowhere://x").items())


def test_versions_of_stores_differ_by_tag_or_time() -> None:
    assert Item("a", 1, places._version({"ETag": '"1"', "LastModified": 2})) == Item("a", 1, '"1"')
    assert places._version({"mtime": 1.5}) == "1.5"
    assert places._version({}) == ""
