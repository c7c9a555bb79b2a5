"""The catalog at the size of a large study: a query from the shell, and what one more run costs.

    python benchmarks/bench_catalog.py [--images 100000] [--runs 50] [--rounds 3]

The images are lines of a manifest that states their digests; nothing is encoded. Stores and runs
are written by the functions that `extract` and `probe` write them with. Times of commands are of
whole processes, Python's own start included, and the memory is the peak of the process. 'Tables in
memory' is how queries were answered before: every file is read into Arrow tables, for each query
anew.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import print_machine, spread

import embedcache
from embedcache.catalog.connection import connect
from embedcache.catalog.index import check_catalog, connect_memory
from embedcache.catalog.sources import SourceItem
from embedcache.data.manifest import write_manifest
from embedcache.data.predictions import Predictions
from embedcache.data.question import Question
from embedcache.project import Project
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.record import RunRecord
from embedcache.runs.request import RunData, RunRequest
from embedcache.verbs.catalog import catalog_source, renew_catalog
from embedcache.verbs.session import Session

COMMAND = Path(sys.executable).with_name("embedcache")
CLASSES = ("abdomen", "brain", "cervix", "femur", "other", "thorax")
DIM = 64
PER_PATIENT = 8


LAUNCHER = """
import os, resource, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, code, usage = os.wait4(pid, 0)
wall = time.perf_counter() - start
print(os.waitstatus_to_exitcode(code), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss,
      file=sys.stderr)
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """Wall time and processor time in seconds, and peak memory in MB of a whole process."""

    wall_s: float
    cpu_s: float
    peak_mb: float | None = None


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def write_project(folder: Path, n_images: int, n_encoders: int) -> Project:
    rows = [
        {
            "image_id": f"IM-{number // PER_PATIENT:05d}_{number % PER_PATIENT}",
            "path": f"images/IM-{number // PER_PATIENT:05d}_{number % PER_PATIENT}.png",
            "patient_id": f"IM-{number // PER_PATIENT:05d}",
            "label": CLASSES[number % len(CLASSES)],
            "cohort": "home" if number < 0.8 * n_images else "abroad",
            "device": f"device {number % 5}",
            "sha256": key_of(number),
        }
        for number in range(n_images)
    ]
    write_manifest(folder / "data_manifest.csv", rows)
    project = embedcache.open(folder)
    project.workspace.create_store()
    session = Session(project.workspace)
    assert session.snapshot  # is stored when it is asked for
    rng = np.random.default_rng(0)
    keys = [key_of(number) for number in range(n_images)]
    for number in range(n_encoders):
        document = document_of(f"encoder-{number}")
        name = f"{document['name']}-{document['fingerprint'][:12]}"
        store = session.create_store(project.workspace.encoders / name, document)
        store.append(keys, rng.normal(size=(n_images, DIM)).astype(np.float32))
    return project


def document_of(name: str) -> dict:
    """Return what an `encoder.json` says, as far as the store and the catalog ask."""
    return {
        "name": name,
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "identity": {
            "dim": DIM,
            "architecture": "none",
            "output": "drawn",
            "precision": "fp32",
            "weights": "none",
            "preprocess": {},
        },
        "spec": {"weights": {"licence": "MIT"}},
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
    }


def add_run(project: Project, number: int, n_rows: int) -> None:
    rng = np.random.default_rng(number)
    images = np.arange(n_rows) + number % 8 * n_rows
    ids = [f"IM-{image // PER_PATIENT:05d}_{image % PER_PATIENT}" for image in images]
    answers = Predictions(
        role="in-domain",
        classes=CLASSES,
        image_id=tuple(ids),
        patient_id=tuple(image_id.split("_")[0] for image_id in ids),
        cohort=("home",) * n_rows,
        label=tuple(CLASSES[image % len(CLASSES)] for image in images),
        fold=images % 5,
        probability=rng.dirichlet(np.ones(len(CLASSES)), n_rows),
    )
    encoder = f"encoder-{number % 3}"
    request = RunRequest(
        kind="probe",
        encoder=encoder,
        fingerprint=document_of(encoder)["fingerprint"],
        question=Question(train_cohort="home", external=()),
        method=ProbeMethod(),
        data=RunData(None, (), None, ""),
        constants={"number": number},
    )
    record = RunRecord(
        request=request,
        results={},
        notes=(),
        n_skipped=0,
        created="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        tables={},
    )
    RunFiles(project.workspace).write(record, answers=[answers])


def run_command(folder: Path, *arguments: str) -> Usage:
    """Run the command by way of a small process: a child begins with the peak of its parent."""
    command = [str(COMMAND), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    code, wall_s, cpu_s, peak_kb = done.stderr.splitlines()[-1].split()
    if code not in {"0", "3"}:
        sys.exit(done.stderr)
    return Usage(float(wall_s), float(cpu_s), float(peak_kb) / 1000)


def used_by(call: Callable[[], object]) -> Usage:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Usage(time.perf_counter() - wall, time.process_time() - cpu)


def show(what: str, usages: Sequence[Usage]) -> None:
    line = f"{what}: wall {spread([u.wall_s for u in usages])} s"
    line += f", processor {spread([u.cpu_s for u in usages])} s"
    peaks = [u.peak_mb for u in usages if u.peak_mb is not None]
    print(f"{line}, peak {spread(peaks, 0)} MB" if peaks else line, flush=True)


def ratio(usages: Sequence[Usage], others: Sequence[Usage]) -> float:
    """Return the ratio of two medians of processor time."""
    return float(np.median([u.cpu_s for u in usages]) / np.median([u.cpu_s for u in others]))


def answer_from_arrow(items: Sequence[SourceItem], query: str) -> None:
    """Answer a query as it was done before there was a catalog to ask: from tables in memory."""
    tables: dict[str, list[pa.Table]] = {}
    for item in items:
        for name, table in item.load().items():
            tables.setdefault(name, []).append(table)
    with connect() as connection:
        for name, parts in tables.items():
            connection.register(name.replace("internal.", ""), pa.concat_tables(parts))
        connection.sql(query).to_arrow_table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rows", type=int, default=10_000, help="Predictions a run.")
    parser.add_argument("--encoders", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where to write the project, and leave it.")
    arguments = parser.parse_args()
    print_machine("duckdb", "pyarrow")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        measure(folder, arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    project = write_project(folder, arguments.images, arguments.encoders)
    for number in range(arguments.runs):
        add_run(project, number, arguments.rows)
    print(
        f"{arguments.images} images, {arguments.encoders} encoders, {arguments.runs} runs with "
        f"{arguments.runs * arguments.rows} predictions"
    )
    rounds = range(arguments.rounds)
    workspace = project.workspace

    def renewed(*, anew: bool = False) -> None:
        renew_catalog(Session(workspace), anew=anew)

    whole = [used_by(lambda: renewed(anew=True)) for _ in rounds]
    show(f"catalog of {workspace.catalog.stat().st_size / 1e6:.0f} MB written anew", whole)
    query = "FROM predictions WHERE patient_id = 'IM-00500'"
    of_patient = [run_command(folder, "sql", query) for _ in rounds]
    show("sql, predictions of one patient", of_patient)
    for what, other in (
        ("places of its embeddings", "FROM embedding_rows WHERE patient_id = 'IM-00500'"),
        ("count(*) of images", "SELECT count(*) FROM images"),
    ):
        show(f"sql, {what}", [run_command(folder, "sql", other) for _ in rounds])
    show("status", [run_command(folder, "status") for _ in rounds])
    before = [used_by(lambda: answer_from_arrow(items_of(project), query)) for _ in rounds]
    show("the first query, tables in memory, without the start of Python", before)
    print(f"  the command, with the start of Python, takes {ratio(of_patient, before):.3f} of that")
    updates = []
    for number in rounds:
        add_run(project, arguments.runs + number, arguments.rows)
        updates.append(used_by(renewed))
    show(f"catalog updated by one run of {arguments.rows} predictions", updates)
    print(f"  {ratio(updates, whole):.3f} of the time of writing it anew")
    show("catalog found up to date", [used_by(renewed) for _ in rounds])
    manifest = workspace.manifest
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("device 4", "device 9"))
    show("catalog updated after an edit", [used_by(renewed)])
    show("  of which looking at all images", [used_by(lambda: Session(workspace).images)])
    absent = workspace.catalog.with_name("absent.duckdb")
    for what, file in (("no file", absent), ("an old file", workspace.catalog)):
        in_memory = used_by(lambda file=file: connect_memory(file, items_of(project)).close())
        show(f"catalog in memory, from {what}", [in_memory])
    show("check of every table", [used_by(lambda: check_catalog(workspace.catalog))])


def items_of(project: Project) -> Sequence[SourceItem]:
    return catalog_source(project.workspace).items


if __name__ == "__main__":
    main()
