"""Runs as they are stored: one folder each, made to exist by the record in it.

The tables are put first, each under a name with its checksum; the record, which names them, comes
last and makes the run exist. While that goes on the folder has a mark, so that a folder without a
record is either an interrupted write (with the mark) or a run that lost its record (without).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from embedcache.data.predictions import Answers
from embedcache.errors import StoreCorruptError, StoreReadError, StoreWriteError
from embedcache.files.backend import Entry, Location
from embedcache.files.documents import known_shape, parse_table, read_document, seal, table_bytes
from embedcache.files.durable import TEMPORARY, crc32c
from embedcache.files.kinds import Ages, sweep_temporaries
from embedcache.files.locks import locked, remove_if_free
from embedcache.files.marks import is_left, is_withdrawn, put_mark, withdraw
from embedcache.runs.record import RunRecord, TableFile, record_from_document
from embedcache.runs.tables import (
    SCHEMAS,
    answers_of,
    estimates_of,
    metrics_table,
    predictions_table,
    with_all_columns,
    with_run_id,
)
from embedcache.scoring.estimates import Estimate
from embedcache.workspace import RUN_DOCUMENT, Workspace

_log = logging.getLogger(__name__)

_RUN_ID: Final = re.compile(r".+-[0-9a-f]{12}")
_MARK: Final = ".writing"
_LOCK: Final = ".lock-"
_WAY_OUT: Final = "run `embedcache verify --repair`, then make the run again"


class RunFiles:
    """The runs of a workspace; each record is read once.

    Parameters
    ----------
    workspace
        Workspace of the runs.

    Attributes
    ----------
    folder
        Folder of the runs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.folder = workspace.runs
        self._records: dict[str, RunRecord] = {}
        self._copies: set[str] = set()

    def ids(self) -> list[str]:
        """Return the names of the runs, sorted."""
        return list(self.workspace.run_stamps())

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._records or (self.folder / run_id / RUN_DOCUMENT).exists()

    def record(self, run_id: str) -> RunRecord:
        """Return the record of a run.

        Raises
        ------
        StoreCorruptError
            The record is missing or does not match its checksum.
        StoreReadError
            It is the record of another run: the folder is a copy, or has lost its name.
        """
        if run_id not in self._records:
            file = self.folder / run_id / RUN_DOCUMENT
            document = read_document(file)
            with known_shape(file):
                record = record_from_document(document)
            if record.run_id != run_id:
                self._copies.add(run_id)
                raise StoreReadError(
                    f"{file} is the record of run '{record.run_id}'; a copy is no run of its own: "
                    "move it out of the store, or give it its name back"
                )
            self._records[run_id] = record
        return self._records[run_id]

    def is_copy(self, run_id: str) -> bool:
        """Tell whether a folder holds the record of a run that has another name."""
        with contextlib.suppress(StoreCorruptError, StoreReadError):
            self.record(run_id)
        return run_id in self._copies

    def readable_records(self) -> list[RunRecord]:
        """Return the record of every run, by name; the log tells of those that cannot be read."""
        records = []
        for run_id in self.ids():
            try:
                records.append(self.record(run_id))
            except (StoreCorruptError, StoreReadError) as error:
                if run_id not in self._copies:
                    _log.warning("run '%s' is left out: %s", run_id, error)
        return records

    def table(self, run_id: str, name: str) -> pa.Table:
        """Return the predictions, the metrics or the fold predictions of a run.

        Raises
        ------
        StoreCorruptError
            The file is missing or does not match the checksum in the record.
        StoreReadError
            It is whole, and of a shape that this release does not know.
        """
        file = self.record(run_id).tables.get(name)
        if file is None:
            return SCHEMAS[name].empty_table()
        data = self._checked(run_id, file)
        with known_shape(self.folder / run_id / file.name):
            table = with_all_columns(parse_table(data), name)
            # The folder names the run, also where the table was written for another.
            return with_run_id(table, run_id)

    def _checked(self, run_id: str, file: TableFile) -> bytes:
        path = self.folder / run_id / file.name
        try:
            data = path.read()
        except FileNotFoundError:
            raise StoreCorruptError(f"{path} is missing; {_WAY_OUT}", is_missing=True) from None
        if (len(data), crc32c(data)) != (file.size, file.crc32c):
            raise StoreCorruptError(f"{path} does not match its checksum; {_WAY_OUT}")
        return data

    def estimates(self, run_id: str) -> tuple[Estimate, ...]:
        """Return the scores of a run; see `table`."""
        table = self.table(run_id, "metrics")
        with known_shape(self.folder / run_id):
            return estimates_of(table)

    def answers(self, run_id: str) -> tuple[Answers, ...]:
        """Return what a run predicted, a cohort each, in the order in which it was written."""
        return self._answers(run_id, "predictions")

    def fold_answers(self, run_id: str) -> tuple[Answers, ...]:
        """Return what each fold's model predicted of external cohorts, a cohort each.

        Empty for a run of format version 1, which kept their mean only.
        """
        return self._answers(run_id, "fold_predictions")

    def _answers(self, run_id: str, name: str) -> tuple[Answers, ...]:
        table = self.table(run_id, name)
        with known_shape(self.folder / run_id):
            return answers_of(table, self.record(run_id).task)

    @contextlib.contextmanager
    def lock(self, run_id: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a run against other processes that would make the same: it saves double work."""
        file = self.folder / f"{_LOCK}{run_id}"
        with locked(file, on_wait):
            yield
            # While it is held: whoever waits for it finds the run, under whatever lock.
            if file.local_path is not None and run_id in self:
                file.delete()

    def write(
        self,
        record: RunRecord,
        *,
        answers: Sequence[Answers],
        fold_answers: Sequence[Answers] = (),
        estimates: Iterable[Estimate] = (),
    ) -> RunRecord:
        """Store a run and return its record, with the names of its tables.

        A run that another process stored meanwhile is left as it is.

        Raises
        ------
        StoreWriteError
            The storage refused; the run does not exist.
        """
        run_id = record.run_id
        folder = self.folder / run_id
        contents = {
            "predictions": table_bytes(predictions_table(run_id, answers)),
            "metrics": table_bytes(metrics_table(run_id, estimates)),
            "fold_predictions": table_bytes(predictions_table(run_id, fold_answers)),
        }
        if not fold_answers:
            del contents["fold_predictions"]
        tables = {}
        self.workspace.create_store()
        mark = folder / _MARK
        with put_mark(mark):
            for name, data in contents.items():
                file = TableFile(f"{name}.{crc32c(data):08x}.parquet", len(data), crc32c(data))
                with contextlib.suppress(FileExistsError):
                    # A file of that name has the same checksum: it was put before.
                    (folder / file.name).put(data)
                tables[name] = file
            record = replace(record, tables=tables)
            with contextlib.suppress(FileExistsError):
                # Where another process was faster, its record stands, with the tables it names.
                (folder / RUN_DOCUMENT).put(seal(record.document()))
            self._check_not_withdrawn(record)  # asked only now: see `files/marks.py`
        with contextlib.suppress(StoreWriteError):  # a mark that stays is swept one day
            mark.delete()
        self._records.pop(run_id, None)
        return self.record(run_id)

    def _check_not_withdrawn(self, record: RunRecord) -> None:
        """Take a run back that was just written, if a sweep took its writer for dead."""
        folder = self.folder / record.run_id
        # The mark first: a sweep that removes it meanwhile has removed the tables before.
        is_swept = is_withdrawn(folder / _MARK)
        names = {entry.name for entry in folder.list()}
        if is_swept or any(file.name not in names for file in record.tables.values()):
            self.remove(record.run_id)
            raise StoreWriteError(
                f"{folder}: a clean-up took this write for a killed one's leftover; run the same "
                "command again"
            )

    def remove(self, run_id: str) -> None:
        """Remove the record of a run and its tables; files of others stay where they are."""
        folder = self.folder / run_id
        names = [entry.name for entry in folder.list(hidden=True)]
        # The record first, without which there is no run; the mark last, which tells that its loss
        # is no damage.
        order = {RUN_DOCUMENT: 0, _MARK: 2}
        ours = sorted(filter(_is_ours, names), key=lambda name: order.get(name, 1))
        for name in ours:
            (folder / name).delete()
        if len(ours) == len(names):
            folder.delete()
        self._records.pop(run_id, None)

    def folders(self) -> list[str]:
        """Return the names of runs, and of runs that have tables but lost their record.

        A folder that is not named as runs are is somebody's own, unless its record says otherwise.
        """
        return [
            run_id
            for run_id, names in self._files().items()
            if _is_run(names) and (_RUN_ID.fullmatch(run_id) or self._is_readable(run_id))
        ]

    def _is_readable(self, run_id: str) -> bool:
        try:
            return self.record(run_id).run_id == run_id
        except (StoreCorruptError, StoreReadError):
            return False

    def damages(self, run_id: str) -> Iterator[tuple[Location, str]]:
        """Yield each file of a run that is damaged or missing, and what is wrong with it."""
        path = self.folder / run_id
        try:
            record = self.record(run_id)
        except StoreCorruptError as error:
            yield path / RUN_DOCUMENT, error.problem
            return
        for file in record.tables.values():
            try:
                self._checked(run_id, file)
            except StoreCorruptError as error:
                yield path / file.name, error.problem

    def is_marked(self, run_id: str) -> bool:
        """Tell whether a run is being written, or was when its writer was killed."""
        return (self.folder / run_id / _MARK).exists()

    def sweep(self, grace_s: float) -> int:
        """Delete what killed writers have left, and return how many bytes that freed.

        Parameters
        ----------
        grace_s
            Age in seconds that a leftover must have reached; what a living writer holds stays.
        """
        ages, freed = Ages(self.folder), 0
        for run_id, names in self._files().items():
            mark = self.folder / run_id / _MARK
            if RUN_DOCUMENT not in names:
                freed += self._sweep_interrupted(run_id, names, ages, grace_s)
            elif _MARK in names and is_left(mark, ages, grace_s):
                # Beside a record it would hide, later, that the record was lost.
                mark.delete()
            if _RUN_ID.fullmatch(run_id):  # else it is somebody's own
                freed += sweep_temporaries(self.folder / run_id, grace_s)
        for entry in self.folder.list(hidden=True):
            file = (self.folder / entry.name).local_path
            is_old = entry.name.startswith(_LOCK) and ages.is_over(entry.modified_ns, grace_s)
            if is_old and file is not None:
                remove_if_free(file)
        return freed + sweep_temporaries(self.folder, grace_s)

    def _sweep_interrupted(
        self, run_id: str, names: Mapping[str, Entry], ages: Ages, grace_s: float
    ) -> int:
        """Remove a run whose writing has not ended, unless its writer lives."""
        mark = self.folder / run_id / _MARK
        # Without a mark it has lost its record, which is damage; beside files of others all stays.
        is_ours = _MARK in names and all(map(_is_ours, names))
        if not is_ours or not is_left(mark, ages, grace_s):
            return 0
        withdraw(mark)
        # The writer may have put the record meanwhile. If it does so after this it finds that it
        # was withdrawn, and takes the record back.
        if (self.folder / run_id / RUN_DOCUMENT).exists():
            return 0
        self.remove(run_id)
        return sum(entry.size for entry in names.values())

    def _files(self) -> dict[str, dict[str, Entry]]:
        """Return what lies in each folder by name; names in its sub-folders have a slash."""
        folders: dict[str, dict[str, Entry]] = {}
        # One listing for all runs: where storage is remote, each call is a journey.
        for entry in self.folder.list(deep=True):
            run_id, slash, name = entry.name.partition("/")
            if slash:
                folders.setdefault(run_id, {})[name] = entry
        return folders


def _is_run(names: Mapping[str, Entry]) -> bool:
    return RUN_DOCUMENT in names or (any(map(_is_table, names)) and _MARK not in names)


def _is_table(name: str) -> bool:
    return name.endswith(".parquet") and name.partition(".")[0] in SCHEMAS


def _is_ours(name: str) -> bool:
    return _is_table(name) or name in {RUN_DOCUMENT, _MARK} or name.startswith(TEMPORARY)
