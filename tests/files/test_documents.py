from __future__ import annotations

import pyarrow as pa
import pytest

from embedcache.errors import StoreCorruptError
from embedcache.files import documents
from embedcache.files.backend import Location
from embedcache.testing import MemoryBackend


@pytest.fixture
def folder() -> Location:
    return Location(MemoryBackend(), "folder")


def test_a_document_carries_its_checksum(folder):
    file = folder / "d.json"
    file.put(documents.seal({"b": 1, "a": ["ü", None]}))
    assert documents.read_document(file) == {"a": ["ü", None], "b": 1}
    file.replace(file.read().replace(b'"b": 1', b'"b": 2'))
    with pytest.raises(StoreCorruptError, match=r"d\.json does not match its checksum") as caught:
        documents.read_document(file)
    assert caught.value.problem == "does not match its checksum"


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "null", "\udcff"])
def test_what_is_no_sealed_document_is_damage(folder, text):
    file = folder / "d.json"
    file.put(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreCorruptError, match="does not match its checksum"):
        documents.read_document(file)


def test_an_absent_document_is_told_from_a_damaged_one(folder):
    with pytest.raises(StoreCorruptError, match="is missing") as caught:
        documents.read_document(folder / "nowhere.json")
    assert caught.value.is_missing
    assert caught.value.problem == "is missing"


def test_any_flipped_bit_in_a_table_is_found(folder):
    file = documents.put_table(folder, "t", pa.table({"x": [1, 2, 3]}))
    data = file.read()
    assert documents.read_table(file).to_pydict() == {"x": [1, 2, 3]}
    assert documents.table_stem(file.name) == "t"
    assert documents.find_table(folder, "t") == file
    for position in range(0, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 1 << (position % 8)
        file.replace(bytes(broken))
        with pytest.raises(StoreCorruptError, match="does not match the checksum in its name"):
            documents.read_table(file)


def test_putting_an_equal_table_again_is_no_error(folder):
    table = pa.table({"x": ["a"]})
    assert documents.put_table(folder, "t", table) == documents.put_table(folder, "t", table)


def test_only_names_with_a_checksum_are_tables(folder):
    file = documents.put_table(folder, "t", pa.table({"x": ["a"]}))
    for name in ("backup.parquet", "t.parquet", ".t.00000000.parquet", "t.0000000g.parquet"):
        (folder / name).put(b"of somebody else")
    assert documents.table_files(folder) == {"t": file}
