"""What `torture.py` torments: a small project, every verb on it, and processes that fail."""

from __future__ import annotations

import atexit
import contextlib
import csv
import ctypes
import importlib
import mmap
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from embedcache_cli.main import VERBS, main

import embedcache
from embedcache.encoders import registry
from embedcache.extract import lane
from embedcache.runs.files import RunFiles
from embedcache.store import layout
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort
from embedcache.verbs import quickstart

HERE = Path(__file__).parent
SHIM = HERE / "torture_shim.c"
PATIENCE_S = 180  # until a process counts as one that hangs
NO_LINKS, NO_LOCKS, NO_CASE = 1, 2, 4
ENCODER = HERE.parent / "tests" / "golden" / "tiniest_encoder.py"
MANIFEST = "data_manifest.csv"
PROMPTS = "template: '{}'\nclasses:\n  abdomen: {prompts: [a, b]}\n  brain: {prompts: [c]}\n"


class Plan(ctypes.Structure):
    """What the shim is to do to a process; see `torture_shim.c`."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("fault", "error", "world", "lock_error")),
        *((name, ctypes.c_long) for name in ("at", "jump", "changes", "reads", "happened")),
    ]


def shared_plan(**values: int) -> Plan:
    """Return a plan that a forked process shares, so that what happened to it can be read."""
    plan = Plan.from_buffer(mmap.mmap(-1, ctypes.sizeof(Plan)))
    for name, value in values.items():
        setattr(plan, name, value)
    return plan


def restart_with_shim(folder: Path) -> None:
    """Run this command again with the shim loaded, unless it is."""
    library = os.environ.get("TORTURE_SHIM")
    if library is None:
        library = str(folder / "shim.so")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", library, str(SHIM), "-ldl"]
        subprocess.run(command, check=True)
        changes = {
            "TORTURE_SHIM": library,
            "LD_PRELOAD": library,
            "OMP_NUM_THREADS": "1",
            "EMBEDCACHE_PROGRESS": "off",
            "EMBEDCACHE_RESAMPLES": "100",
        }
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **changes})


def _arm(plan: Plan, folder: Path) -> None:
    library = ctypes.CDLL(os.environ["TORTURE_SHIM"])
    library.torture_arm(ctypes.byref(plan), os.fsencode(folder))


# Processes.


@dataclass
class Process:
    """A forked process, what was planned for it, and where its output goes."""

    name: str
    number: int
    plan: Plan
    output: Path
    status: int | None = None
    took_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def code(self) -> int:
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def wait(self, seconds: float) -> bool:
        """Wait until it ends or stops; tell whether it did."""
        end = time.monotonic() + seconds
        while self.status is None or os.WIFSTOPPED(self.status):
            number, status = os.waitpid(self.number, os.WNOHANG | os.WUNTRACED)
            if number:
                self.status = status
                self.took_s = time.monotonic() - self.began_s
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.004)
        return True


def fork(name: str, work: Callable[[], int], plan: Plan, folder: Path, output: Path) -> Process:
    """Do some work in a process of its own, in a folder below which the plan's fault happens."""
    number = os.fork()
    if number:
        return Process(name, number, plan, output)
    code = 70
    try:
        _move_in(folder, output)
        _arm(plan, folder)
        code = work()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            # What the interpreter does at its end, but for taking itself apart.
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def _move_in(folder: Path, output: Path) -> None:
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    os.chdir(folder)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "EMBEDCACHE_WEIGHTS_HOME"):
        place = folder / "homes" / name.lower()
        place.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(arguments: Sequence[str]) -> int:
    """Run the command as a shell would."""
    sys.argv = ["embedcache", *arguments]
    return main(arguments)


def answer_of(work: Callable[[], Any], folder: Path, scratch: Path) -> Any:
    """Return what some work returns in an undisturbed process of its own, or what it raised."""
    file = scratch / "answer"

    def answer() -> int:
        try:
            value: Any = work()
        except Exception as error:
            value = error
        file.write_bytes(pickle.dumps(value))
        return 0

    process = fork("answer", answer, shared_plan(), folder, scratch / "answer.txt")
    process.wait(PATIENCE_S)
    assert process.status == 0, process.text
    return pickle.loads(file.read_bytes())


# What acknowledges is noted at once, in a file that no fault reaches.


class _Words:
    """A text half for 'pixels', which has none: each text is some direction."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [sum(text.encode()) for text in texts]
        return np.stack([np.random.default_rng(seed).random(256) for seed in seeds])


def prepare_process(notes: Path) -> None:
    """Make commits small, give 'pixels' a text half, and note what is acknowledged."""
    lane.COMMIT_ROWS = 8
    quickstart.MODELS = ("pixels",)
    rows = quickstart.phantom_rows
    quickstart.phantom_rows = lambda seed: rows(seed)[::8]
    registry.load_text = lambda *_, **__: _Words()
    append, write = EmbeddingStore.append, RunFiles.write

    def note(*words: str) -> None:
        descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, "".join(f"{word}\n" for word in words).encode())
        os.close(descriptor)

    def noted_append(self: EmbeddingStore, keys: Sequence[str], *more: Any, **settings: Any):
        append(self, keys, *more, **settings)
        if self.folder.parent.name == "encoders":  # pictures for trainings are derived
            note(*(f"{self.folder} {self.fingerprint} {key}" for key in keys))

    def noted_write(self: RunFiles, *more: Any, **settings: Any):
        record = write(self, *more, **settings)
        note(f"{self.workspace.store} run {record.run_id}")
        return record

    EmbeddingStore.append, RunFiles.write = noted_append, noted_write


# The project, in the states from which verbs start.

PIXELS = ("-m", "pixels")
TINY = ("-m", "tiniest-vit", "--encoder-file", "encoder.py")
FEW = ("--folds", "3", "-q")
EXTRACT = ("extract", *PIXELS, *TINY, "-b", "4", "-j", "2", "-q")
TRAIN = ("finetune", *TINY, "--regime", "head-only", "--epochs", "1", "-b", "16", "--save", *FEW)
PATIENT = r"((?:home|abroad)-\d+)"


def write_bare(folder: Path) -> None:
    """Write images, a manifest, an encoder and prompts."""
    write_cohort(folder, n_patients=6, n_images=2, size=8, cohorts=("home", "abroad"))
    for image in sorted((folder / "images").iterdir()):
        place = folder / "classes" / image.stem.split("_")[1]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place / image.name)
    shutil.copy(ENCODER, folder / "encoder.py")
    (folder / "prompts.yaml").write_text(PROMPTS)


def drop_images(folder: Path) -> None:
    """Take three images from the manifest."""
    lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(lines[:-3]))


def litter(folder: Path) -> None:
    """Leave rows that no manifest wants, and what killed writers leave."""
    drop_images(folder)
    store = folder / ".embedcache"
    for place in (store, store / "manifests", store / "folds", store / "runs"):
        (place / ".tmp-0123456789abcdef").write_bytes(b"half")
    for encoder in (store / "encoders").iterdir():
        (encoder / "commit" / ".tmp-0123456789abcdef").write_bytes(b"half")
    (store / ".tmp-0123456789abcdef.duckdb").write_bytes(b"half")
    (store / ".tmp-0123456789abcdef.duckdb.wal").write_bytes(b"half")


def harm(folder: Path, chance: random.Random) -> list[str]:
    """Damage one to three files of a store; return their names."""
    store = folder / ".embedcache"
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)
    files = [file for file in files if file.name[0] != "." and file.name != "LOCK"]
    names = []
    for file in chance.sample(files, chance.randint(1, 3)):
        names.append(str(file.relative_to(store)))
        data = bytearray(file.read_bytes())
        how = chance.choice(["flip", "cut", "lose"])
        if how == "lose":
            file.unlink()
            continue
        if how == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data[: chance.randrange(len(data))] if how == "cut" else data)
    return names


STATES: dict[str, tuple[str | None, tuple[Sequence[str] | Callable[[Path], object], ...]]] = {
    "bare": (None, (write_bare,)),
    "part": ("bare", (("extract", *PIXELS, "--shard", "1/2", "-b", "4", "-q"),)),
    "full": (
        "bare",
        (
            EXTRACT,
            ("probe", *PIXELS, *FEW),
            ("zeroshot", *PIXELS, "--prompts", "prompts.yaml"),
            TRAIN,
        ),
    ),
    "unlisted": ("full", (lambda folder: (folder / ".embedcache/catalog.duckdb").unlink(),)),
    "littered": ("full", (litter,)),
}


@dataclass(frozen=True)
class Case:
    """A verb on a state."""

    state: str
    arguments: tuple[str, ...]

    @property
    def verb(self) -> str:
        is_repair = "--repair" in self.arguments
        return " ".join([self.arguments[0], *(["--repair"] if is_repair else [])])


QUERY = "SELECT kind, count(*) FROM runs JOIN predictions USING (run_id) GROUP BY ALL"
VECTORS = "SELECT count(*), sum(vector[1]) FROM embeddings WHERE encoder = 'pixels'"
CASES = [
    Case("bare", ("quickstart", "--into", "quick", "-q")),
    Case("bare", ("manifest", "folder", "--root", "classes", "--patient", PATIENT, "--cohort",
                  "both", "-o", "written.csv", "--overwrite")),
    Case("full", ("manifest", "check")),
    Case("bare", ("encoders",)),
    Case("bare", EXTRACT),
    Case("part", EXTRACT),
    Case("part", ("extract", *PIXELS, "--shard", "2/2", "-b", "4", "-q")),
    Case("full", ("status",)),
    Case("unlisted", ("status", "--json")),
    Case("full", ("verify",)),
    Case("harmed", ("verify", "--repair", "--encoder-file", "encoder.py", "-q")),
    Case("full", ("export", *PIXELS, "-o", "rows.parquet")),
    Case("full", ("export", "-m", "tiniest-vit", "-o", "rows.npy")),
    Case("full", ("folds", "--folds", "4")),
    Case("full", ("probe", *PIXELS, "-m", "tiniest-vit", "--probe", "knn", "--no-controls", *FEW)),
    Case("full", ("probe", *PIXELS, "--seed", "1", *FEW)),
    Case("full", ("zeroshot", *PIXELS, "--prompts", "prompts.yaml", "--seed", "1")),
    Case("full", (*TRAIN, "--seed", "1")),
    Case("full", ("compare",)),
    Case("full", ("sql", QUERY)),
    Case("unlisted", ("sql", VECTORS, "-o", "answer.csv")),
    Case("full", ("index",)),
    Case("unlisted", ("index",)),
    Case("littered", ("gc", "--grace", "0")),
    Case("full", ("audit",)),
    Case("full", ("doctor", "--offline")),
]  # fmt: skip
UNCOVERED = {"weights": "writes beside the stores, from a downloaded file"}


def cases_of(verbs: Sequence[str]) -> list[Case]:
    """Return the cases of some verbs that this release has."""
    present = [case for case in CASES if case.arguments[0] in VERBS]
    return [case for case in present if not verbs or {case.verb, case.arguments[0]} & set(verbs)]


def uncovered_verbs() -> list[str]:
    """Return the verbs of the command line that no case has."""
    return sorted(set(VERBS) - {case.arguments[0] for case in CASES})


# What is held.


@dataclass
class Held:
    """What can be read of a store: digest of each row by fingerprint and key, tables by run."""

    rows: dict[tuple[str, str], bytes]
    runs: dict[str, tuple[str, ...]]
    leftovers: list[str]
    twins: list[str]


def look(folder: Path) -> Held:
    """Read everything that the stores below a folder hold."""
    held = Held({}, {}, [], [])
    for store in (folder / ".embedcache", folder / "quick" / ".embedcache"):
        if not store.exists():
            continue
        workspace = embedcache.open(store.parent).workspace
        for place in workspace.encoder_folders():
            if (place / "encoder.json").exists():
                _look_at_rows(EmbeddingStore(place), held)
        runs = RunFiles(workspace)
        for run_id in runs.ids():
            tables = runs.record(run_id).tables
            held.runs[run_id] = tuple(sorted(file.name for file in tables.values()))
            for name in tables:
                runs.table(run_id, name)
        held.leftovers += _leftovers(store)
        held.twins += _twins(store)
    return held


def _look_at_rows(store: EmbeddingStore, held: Held) -> None:
    keys = store.row_keys()
    for key, row in zip(keys, store.read(keys), strict=True):
        held.rows[store.fingerprint, key] = row.tobytes()
    named = {record.id for record in store.records}
    spare = set(layout.segment_folders(store.folder)) - named
    held.leftovers += [f"segment {name} without a live record" for name in sorted(spare)]


def _leftovers(store: Path) -> list[str]:
    starts, ends = (".tmp-", ".lock-", ".active-", ".writing"), (".wal", ".lock")
    paths = store.rglob("*")
    names = [p for p in paths if p.name.startswith(starts) or p.name.endswith(ends)]
    published = {path.name for path in (store / "runs").glob("*")}
    states = [path for path in (store / "training").glob("*") if path.name in published]
    return [str(path.relative_to(store)) for path in [*names, *states]]


def is_lock_or_guarded(leftover: str) -> bool:
    """Tell whether a leftover is the file of a lock, or a training that a lock guards."""
    return Path(leftover).name.startswith((".lock-", ".active-")) or leftover.startswith("training")


def grow_old(folder: Path) -> None:
    """Make temporaries and marks of writers two hours old."""
    then = time.time() - 7200
    for path in [*folder.rglob(".tmp-*"), *folder.rglob(".writing")]:
        os.utime(path, (then, then))


def _twins(store: Path) -> list[str]:
    """Return names that would be one on a file system that folds case."""
    names = [str(path.relative_to(store)) for path in store.rglob("*")]
    plain = [name.casefold() for name in names]
    return [name for name in names if plain.count(name.casefold()) > 1]


def wanted_keys(folder: Path) -> set[str] | None:
    """Return the digests of the manifest's images."""
    from embedcache.files.digests import sha256

    with (folder / MANIFEST).open() as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    return {sha256((folder / path).read_bytes()) for path in paths}


def notebook(folder: Path, until: int) -> int:
    """Hold the catalog open as another program does, until the other end of a pipe closes."""
    import duckdb

    project = embedcache.open(folder)
    query = "SELECT count(*) FROM images"
    catalog = project.workspace.catalog
    connection = duckdb.connect(str(catalog), read_only=True) if catalog.exists() else None
    before = connection.execute(query).fetchall() if connection else None
    with contextlib.suppress(OSError):
        os.read(until, 1)
    if connection and connection.execute(query).fetchall() != before:
        return 1
    project.sql(query)
    return 0


def import_modules(names: Sequence[str]) -> None:
    """Import here what a forked process would have to import each time."""
    for name in names:
        if name not in sys.modules and not name.startswith(("__", "tiniest")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
