"""Reading, looking up and committing rows, beside other formats, in one run.

    python benchmarks/bench_store.py [--rows 12850] [--dim 768] [--rounds 25]

CPU time, because the disk's cache is warm for all; checksums are verified by every format that is
called checksummed. Needs the extra 'bench'.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import duckdb
import h5py
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from common import print_machine, spread

import embedcache
from embedcache.catalog import query as catalog_query
from embedcache.catalog.embeddings import register_embeddings
from embedcache.data.manifest import write_manifest
from embedcache.files.backend import Location, on_disk
from embedcache.files.durable import utc_now
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.catalog import catalog_source


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def wall_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=12_850)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    print_machine("zarr", "pyarrow", "pylance", "h5py", "duckdb", "numpy")
    X = np.random.default_rng(0).normal(size=(args.rows, args.dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        time_reading(Path(name), X, args.rounds)
    with tempfile.TemporaryDirectory() as name:
        time_asking(Path(name), X, args.rounds)
    with tempfile.TemporaryDirectory() as name:
        time_committing(Path(name), X)


def make_store(folder: Location, X: np.ndarray) -> tuple[EmbeddingStore, list[str]]:
    document = {
        "name": "bench",
        "fingerprint": "b" * 64,
        "identity": {
            "dim": X.shape[1],
            "architecture": "none",
            "output": "rows",
            "precision": "fp32",
            "weights": "none",
            "preprocess": {},
        },
        "spec": {"name": "bench", "weights": {"licence": "none"}},
        "versions": {},
        "created": utc_now(),
    }
    store = EmbeddingStore.open_or_create(folder, document)
    keys = [f"{number:064x}" for number in range(len(X))]
    store.append(keys, X)
    return store, keys


def time_reading(folder: Path, X: np.ndarray, rounds: int) -> None:
    np.save(folder / "x.npy", X)
    store, keys = make_store(on_disk(folder / "store"), X)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    table = pa.table({"v": vectors})
    pq.write_table(table, folder / "x.parquet", compression="none", write_page_checksum=True)
    lance.write_dataset(table, folder / "x.lance")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(256, X.shape[1]), fletcher32=True)

    def flat(read: pa.Table) -> np.ndarray:
        column = read["v"].combine_chunks()
        return np.asarray(column.flatten()).reshape(X.shape)

    def hdf5() -> np.ndarray:
        with h5py.File(folder / "x.h5") as file:
            return file["x"][:]

    segment = next((folder / "store" / "seg").glob("*.zarr"))
    ways = {
        "np.load, no checksum": lambda: np.load(folder / "x.npy"),
        "embedcache, opened anew": lambda: EmbeddingStore(store.folder).read(keys),
        "embedcache, already open": lambda: store.read(keys),
        "plain zarr on the same files": lambda: zarr.open(segment)[:],
        "HDF5, fletcher32": hdf5,
        "Parquet, page checksums": lambda: flat(
            pq.read_table(folder / "x.parquet", page_checksum_verification=True)
        ),
        "Lance, no checksum": lambda: flat(lance.dataset(folder / "x.lance").to_table()),
    }
    for name, way in ways.items():
        assert np.array_equal(way(), X), name
        way()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            spent[name].append(cpu_ms(way))
    print(
        f"\n{len(X)} x {X.shape[1]} float32 ({X.nbytes / 1e6:.1f} MB) to an array, CPU ms, "
        f"{rounds} rounds; median [least, most]"
    )
    base = spent["np.load, no checksum"]
    for name, values in spent.items():
        ratio = [value / one for value, one in zip(values, base, strict=True)]
        print(f"  {name:30} {spread(values, 1):>22}   {spread(ratio, 2):>20} x np.load")


def time_asking(folder: Path, X: np.ndarray, rounds: int) -> None:
    rows = [
        {
            "image_id": f"i{number}",
            "path": f"{number}.png",
            "patient_id": f"P{number // 7:05d}",
            "label": "abc"[number % 3],
            "cohort": "c",
            "sha256": f"{number:064x}",
        }
        for number in range(len(X))
    ]
    write_manifest(folder / "data_manifest.csv", rows)
    project = embedcache.open(folder)
    project.workspace.create_store()
    store, keys = make_store(project.workspace.encoders / "bench-bbbbbbbbbbbb", X)
    source = catalog_source(project.workspace)

    one = "SELECT image_id, label FROM images WHERE patient_id = 'P00900'"
    where = "SELECT segment, row FROM embedding_rows WHERE patient_id = 'P00900'"
    near = (
        "SELECT b.image_id FROM embeddings a, embeddings b WHERE a.image_id = 'i6300' "
        "ORDER BY array_cosine_similarity(a.vector, b.vector) DESC LIMIT 10"
    )
    seven = keys[6300:6307]
    scattered = keys[:: len(keys) // 7][:7]
    with catalog_query.reading(source) as connection:
        register_embeddings(connection, source.open_stores(), ["embeddings"])
        times = {
            "one patient's images": lambda: connection.sql(one).fetchall(),
            "where one patient's rows lie": lambda: connection.sql(where).fetchall(),
            "ten nearest of all, by cosine": lambda: connection.sql(near).fetchall(),
            "7 rows side by side, from Zarr": lambda: store.read(seven),
            "7 rows scattered, from Zarr": lambda: store.read(scattered),
        }
        print(f"\nAsking, wall ms, {rounds} rounds; median [least, most]")
        for name, work in times.items():
            work()
            print(f"  {name:32} {spread([wall_ms(work) for _ in range(rounds)], 2):>24}")
    path = project.workspace.catalog

    def opened() -> list[tuple]:
        with duckdb.connect(path, read_only=True) as connection:
            return connection.sql(one).fetchall()

    fresh = [wall_ms(opened) for _ in range(9)]
    print(f"  {'the same, catalog.duckdb opened':32} {spread(fresh, 1):>24}")
    catalog = [wall_ms(lambda: project.sql(one)) for _ in range(5)]
    print(f"  {'the same through project.sql':32} {spread(catalog, 0):>24}")


def time_committing(folder: Path, X: np.ndarray) -> None:
    document = make_store(on_disk(folder / "first"), X[:1])[0].document
    store = EmbeddingStore.open_or_create(on_disk(folder / "store"), document)
    walls, cpus = [], []
    for first in range(0, 20 * 256, 256):
        keys = [f"{number:064x}" for number in range(first, first + 256)]
        start = time.process_time()
        walls.append(wall_ms(lambda keys=keys, at=first: store.append(keys, X[at : at + 256])))
        cpus.append(1000 * (time.process_time() - start))
    print(f"\nOne commit of 256 rows: wall ms {spread(walls, 1)}, CPU ms {spread(cpus, 1)}")
    order = store.row_keys()
    print(
        f"Compaction of {len(order)} rows in 20 commits: "
        f"{wall_ms(lambda: store.rewrite(order)):.0f} ms wall"
    )
    encode_s = forward_seconds()
    print(
        f"Forward of 256 images by ResNet-50 on this CPU: {encode_s:.1f} s; a commit is "
        f"{statistics.median(walls) / 10 / encode_s:.2f} % of it"
    )


def forward_seconds() -> float:
    from embedcache.encoders import registry
    from embedcache.files.digests import DigestCache

    encoder = registry.load(registry.identify_by_name("random:resnet50", digests=DigestCache()))
    batch = np.zeros((16, 3, 224, 224), np.float32)
    encoder.encode(batch)
    return statistics.median(wall_ms(lambda: encoder.encode(batch)) for _ in range(4)) * 16 / 1000


if __name__ == "__main__":
    main()
