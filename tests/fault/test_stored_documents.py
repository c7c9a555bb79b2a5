"""Whatever stands in a stored file: it is read, or it is damage, and never another error."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from every_kind import ASKED, TINIEST, make_project
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import embedcache
from embedcache.errors import (
    EmbedcacheError,
    StoreCorruptError,
    StoreMismatchError,
    StoreReadError,
)
from embedcache.files.backend import Location
from embedcache.files.digests import DigestCache
from embedcache.files.documents import read_document, read_table, seal, table_bytes, unseal
from embedcache.files.durable import crc32c
from embedcache.files.shapes import DOCUMENTS
from embedcache.runs.record import record_from_document
from embedcache.testing import MemoryBackend

VIEWS = (
    "runs", "predictions", "fold_predictions", "metrics", "folds", "images", "encoders", "patients",
    "audits", "audit", "audit_scores", "comparisons", "standings", "pairs", "drops", "class_shares",
    "parts", "subgroups",
)  # fmt: skip
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
plain = st.none() | st.booleans() | st.integers() | st.floats() | words | st.just("../../x")
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(words, values, max_size=4)


def steady(max_examples: int) -> settings:
    phases = (Phase.generate, Phase.shrink)
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        deadline=None, derandomize=True, database=None, max_examples=max_examples, phases=phases,
        suppress_health_check=checks,
    )  # fmt: skip


# Readers alone.


@steady(150)
@given(data=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_bytes_that_nobody_sealed_are_damage(data):
    with pytest.raises(StoreCorruptError, match="file of a test does not match its checksum"):
        unseal(data, "file of a test")
    file = Location(MemoryBackend(), f"table.{crc32c(data):08x}.parquet")
    file.put(data)
    with pytest.raises(StoreReadError, match="of a shape that this release does not know"):
        read_table(file)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"crc32c": "\\ud800"}', "", "null"]
)
def test_text_that_python_stumbles_over_is_damage(text):
    with pytest.raises(StoreCorruptError, match="of a test does not match its checksum"):
        unseal(text.encode(), "file of a test")


@steady(150)
@given(document=objects, name=st.sampled_from([*DOCUMENTS, "run.json", "embedcache.json"]))
def test_a_sealed_document_of_any_shape_is_read_or_damage(document, name):
    file = Location(MemoryBackend(), name)
    file.put(seal(document))
    with contextlib.suppress(StoreReadError):
        # NaN is no equal of itself.
        assert str(read_document(file)) == str({k: document[k] for k in document if k != "crc32c"})


@steady(150)
@given(document=objects, keys=st.lists(st.sampled_from(["question", "method", "data"]), max_size=3))
def test_a_record_of_any_shape_is_a_run_of_an_unknown_method(document, keys):
    record = record_from_document({**document, **dict.fromkeys(keys, document), "run_id": "r-1"})
    assert record.run_id == "r-1"


@steady(100)
@given(lines=st.lists(st.binary(max_size=30), max_size=4))
def test_remembered_digests_of_any_lines_are_none(tmp_path, lines):
    body = b"\n".join(lines)
    (tmp_path / "digests.tsv").write_bytes(f"{crc32c(body):08x}".encode() + b"\n" + body)
    digests = DigestCache(tmp_path / "digests.tsv")
    assert digests.get("/x", (0, 0, 0, 0)) is None


# Every verb.


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A project with runs, kept weights, a comparison and an audit, and a copy of its store."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        project, _ = make_project(folder / "project", patch, "probe", "training")
    project.audit(folds=3)
    shutil.copytree(folder / "project" / ".embedcache", folder / "store")
    return folder / "project", folder / "store"


def places(value, place=()):
    """Yield the way to each value in a JSON document."""
    if place:
        yield place
    members = value.items() if isinstance(value, dict) else ()
    members = enumerate(value) if isinstance(value, list) else members
    for key, inner in members:
        yield from places(inner, (*place, key))


def changed(document, draw):
    """Return a JSON document with one value replaced or gone."""
    document = json.loads(json.dumps(document))
    *way, last = draw(st.sampled_from(list(places(document))))
    target = document
    for key in way:
        target = target[key]
    if draw(st.booleans()):
        del target[last]
    else:
        target[last] = draw(values)
    return document


def changed_bytes(data: bytes, draw) -> bytes:
    place = draw(st.integers(0, len(data) - 1))
    flipped = data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
    return draw(st.sampled_from([b"", data[:place], flipped, data + b"x"]) | st.binary(max_size=9))


def changed_table(data: bytes, draw) -> bytes:
    table = pq.read_table(pa.BufferReader(data))
    metadata = table.schema.metadata
    name = draw(st.sampled_from(table.column_names))
    number = table.column_names.index(name)
    how = draw(st.sampled_from(["drop", "texts", "numbers", "null", "twice", "none", "metadata"]))
    if how == "drop":
        table = table.drop_columns([name])
    elif how == "twice":
        table = pa.concat_tables([table, table])
    elif how == "none":
        table = table.slice(0, 0)
    elif how == "metadata":
        stored = json.loads((metadata or {}).get(b"embedcache", b'{"a": 1}'))
        metadata = {b"embedcache": json.dumps(changed(stored, draw)).encode()}
    else:
        column = {"texts": ["x"] * len(table), "numbers": [2**40] * len(table)}.get(how)
        kind = None if column else table.schema.field(name).type
        table = table.set_column(number, name, pa.array(column or [None] * len(table), kind))
    return table_bytes(table.replace_schema_metadata(metadata))


def put_table(file: Path, data: bytes) -> None:
    """Put a table in the place of another, under the name that its content has."""
    file.unlink()
    stem = file.name.rsplit(".", 2)[0]
    new = file.with_name(f"{stem}.{crc32c(data):08x}.parquet")
    new.write_bytes(data)
    record = file.parent / "run.json"
    if record.exists():
        document = json.loads(record.read_bytes())
        del document["crc32c"]
        document["tables"][stem] = [new.name, len(data), crc32c(data)]
        record.write_bytes(seal(document))


def spoil(store: Path, draw) -> Path:
    """Change one stored file, so that its checksum is right or not; return it."""
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name[0] != "."]
    by_kind = {}
    for path in files:
        by_kind.setdefault((path.parts[len(store.parts)], path.suffix), []).append(path)
    file = draw(st.sampled_from(by_kind[draw(st.sampled_from(sorted(by_kind)))]))
    data = file.read_bytes() or b"0"
    is_sealed = draw(st.booleans())
    if is_sealed and file.suffix == ".json" and file.name != "zarr.json":
        document = json.loads(data)
        del document["crc32c"]
        file.write_bytes(seal(changed(document, draw)))
    elif is_sealed and file.suffix == ".parquet":
        put_table(file, changed_table(data, draw))
    else:
        file.write_bytes(changed_bytes(data, draw))
    return file


def verbs(folder: Path):
    """Yield every verb on a project that is opened anew."""
    yield lambda project: project.status()
    yield lambda project: project.verify()
    for view in VIEWS:
        yield lambda project, view=view: project.sql(f"FROM {view}")
    yield lambda project: project.sql("SELECT count(*) FROM embeddings")
    yield lambda project: project.plan("pixels")
    yield lambda project: project.extract("pixels")
    yield ASKED["probe"]
    yield ASKED["training"]
    yield lambda project: project.compare(n_resamples=100)
    yield lambda project: project.audit(folds=3)
    yield lambda project: project.folds(folds=3)
    yield lambda project: project.embeddings("pixels")
    yield lambda project: project.gc(grace_s=-1)
    yield lambda project: project.verify(repair=True, encoder_file=TINIEST)


def error_of(verb, project) -> str:
    """Return what a verb says of stored data that it cannot use."""
    try:
        verb(project)
    except EmbedcacheError as error:
        return str(error)
    return ""


@pytest.mark.slow
@steady(60)
@given(data=st.data())
def test_no_verb_ends_in_another_error_whatever_a_stored_file_holds(whole, data, caplog):
    caplog.set_level(logging.CRITICAL, "embedcache")  # each says what it leaves out
    folder, pristine = whole
    store = folder / ".embedcache"
    shutil.rmtree(store)
    shutil.copytree(pristine, store)
    file = spoil(store, data.draw)
    for verb in verbs(folder):
        assert "\n" not in error_of(verb, embedcache.open(folder)), file
    try:
        report = embedcache.open(folder).verify(repair=True, encoder_file=TINIEST)
    except StoreMismatchError:  # a store of another format is refused whole
        assert file.name == "embedcache.json"
        return
    assert report.is_whole or report.notes, file
    assert report.is_whole == (not embedcache.open(folder).verify().findings), file
