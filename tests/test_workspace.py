from __future__ import annotations

import pyarrow as pa
import pytest

from embedcache.data.snapshots import Snapshots, save_snapshot
from embedcache.errors import StoreMismatchError, StoreWriteError
from embedcache.files.backend import LocalBackend, on_disk
from embedcache.files.documents import read_document, seal
from embedcache.workspace import FORMAT_VERSION, Workspace

FP = "f" * 64


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    store = on_disk(tmp_path / ".embedcache")
    return Workspace(tmp_path / "data_manifest.csv", tmp_path, store)


def version_of(workspace: Workspace) -> int:
    return read_document(workspace.format_file)["version"]


def write_format(workspace: Workspace, version: int) -> None:
    document = {"format": "embedcache", "version": version, "created": "2025-01-01"}
    workspace.format_file.replace(seal(document))


def images(number: int) -> pa.Table:
    return pa.table({"image_id": [f"i{number}"], "path": ["p"], "sha256": ["0" * 64]})


def test_a_store_of_version_1_is_read_as_it_is_and_becomes_version_2_at_the_first_write(workspace):
    write_format(workspace, 1)
    assert workspace.check_format() == 1
    assert version_of(workspace) == 1
    save_snapshot(workspace, images(1))
    assert version_of(workspace) == FORMAT_VERSION
    assert read_document(workspace.format_file)["created"] == "2025-01-01"


def test_a_store_of_version_1_that_cannot_be_written_stays_readable(workspace, monkeypatch):
    write_format(workspace, 1)

    def refuse(*_):
        raise StoreWriteError("Read-only file system")

    monkeypatch.setattr(LocalBackend, "replace", refuse)
    assert workspace.check_format() == 1
    with pytest.raises(StoreWriteError, match="Read-only"):
        save_snapshot(workspace, images(1))
    assert Snapshots(workspace).items() == []
    assert version_of(workspace) == 1


def test_a_store_of_a_later_version_is_refused_with_the_way_out(workspace):
    write_format(workspace, 99)
    with pytest.raises(StoreMismatchError, match="version 99, this release reads"):
        workspace.create_store()
    assert version_of(workspace) == 99


def test_a_new_store_is_of_this_version(workspace):
    assert not workspace.has_store()
    workspace.create_store()
    assert workspace.has_store()
    assert version_of(workspace) == FORMAT_VERSION


def test_an_encoder_is_found_by_its_fingerprint_whatever_its_folder_is_called(workspace):
    assert workspace.encoder_folder("a/b c", FP).name == f"a-b-c-{FP[:12]}"
    document = put_encoder(workspace, f"old-name-{FP[:12]}", FP)
    assert workspace.encoder_folder("a/b c", FP).name == f"old-name-{FP[:12]}"
    assert list(workspace.encoder_documents().values()) == [document]


def put_encoder(workspace, folder: str, fingerprint: str, **changes) -> dict:
    document = {
        "name": "x",
        "fingerprint": fingerprint,
        "identity": {"dim": 1},
        "spec": {},
        **changes,
    }
    (workspace.encoders / folder / "encoder.json").put(seal(document))
    return document


def test_encoders_that_cannot_be_read_are_left_out_and_named(workspace, caplog):
    document = put_encoder(workspace, f"x-{FP[:12]}", FP)
    put_encoder(workspace, "renamed-000000000000", FP)
    put_encoder(workspace, "later-111111111111", "1" * 64, identity=["of", "another", "shape"])
    (workspace.encoders / "torn-222222222222" / "encoder.json").put(b"{")
    (workspace.encoders / "lost-333333333333" / "commit" / "a").put(b"")
    assert list(workspace.encoder_documents().values()) == [document]
    assert [line.split(" is left out: ")[0] for line in caplog.messages] == [
        f"encoder '{name}'"
        for name in (
            "later-111111111111", "lost-333333333333", "renamed-000000000000", "torn-222222222222"
        )
    ]  # fmt: skip
    assert "is that of another encoder, x@ffffffffffff" in caplog.text
    assert "of a shape that this release does not know" in caplog.text


def test_of_two_folders_of_one_fingerprint_the_one_named_as_its_encoder_counts(workspace):
    put_encoder(workspace, f"a-backup-{FP[:12]}", FP)
    put_encoder(workspace, f"x-{FP[:12]}", FP)
    [folder] = workspace.encoder_folders()
    assert folder.name == f"x-{FP[:12]}"
    assert [copy.name for copy in workspace.copied_encoder_folders()] == [f"a-backup-{FP[:12]}"]
    (folder / "encoder.json").replace(b"damaged")
    assert workspace.encoder_folders() == (folder,)
