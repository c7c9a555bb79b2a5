"""One encoder's rows: look up by image digest, append, read, put in order.

Everything here is safe with any number of processes: segments and records are written once, and
the record is what makes rows exist.
"""

from __future__ import annotations

import contextlib
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import StoreCorruptError, StoreMismatchError, StoreWriteError
from embedcache.files.durable import (
    find_table,
    new_id,
    publish,
    read_document,
    seal_document,
    write_error,
)
from embedcache.files.locks import locked
from embedcache.store import layout, segment
from embedcache.store.layout import Record
from embedcache.store.segment import Rows


class EmbeddingStore:
    """The rows of one encoder fingerprint.

    Parameters
    ----------
    folder
        Its folder, with an `encoder.json`.

    Attributes
    ----------
    document
        What `encoder.json` says: name, fingerprint, identity, spec, versions, created.
    dim, dtype
        Length of a row, and its type: 'float32', or 'uint8' where rows are pictures.
    records
        The live records, in the order in which a double row is decided.
    failures
        Key of an image that could not be encoded, to the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document = read_document(folder / layout.DOCUMENT)
        self.dim = int(self.document["identity"]["dim"])
        self.dtype = np.dtype(self.document["identity"].get("dtype", "float32"))
        self.refresh()

    @classmethod
    def open_or_create(cls, folder: Path, document: Mapping[str, Any]) -> EmbeddingStore:
        """Open the store of an encoder, or make an empty one.

        Parameters
        ----------
        folder
            Where it is or will be.
        document
            Name, fingerprint, identity, spec, versions and time of the encoder; JSON values.

        Raises
        ------
        StoreMismatchError
            The folder holds another encoder's rows.
        """
        with contextlib.suppress(FileExistsError):
            if not (folder / layout.DOCUMENT).exists():
                publish(folder / layout.DOCUMENT, seal_document(dict(document)))
        store = cls(folder)
        if store.fingerprint != document["fingerprint"]:
            raise StoreMismatchError(
                f"{folder} holds fingerprint {store.fingerprint[:12]}, expected "
                f"{document['fingerprint'][:12]}; the folder was renamed: give it its name back"
            )
        return store

    @property
    def fingerprint(self) -> str:
        """What its rows have in common; see `encoders.spec.fingerprint_of`."""
        return str(self.document["fingerprint"])

    @property
    def name(self) -> str:
        """The encoder's name."""
        return str(self.document["name"])

    @property
    def size_bytes(self) -> int:
        """Bytes of the live segments."""
        return sum(record.size_bytes for record in self.records)

    def refresh(self) -> None:
        """Look again at what is committed.

        Raises
        ------
        StoreCorruptError
            A live record or segment is missing, cut short or damaged.
        """
        # Listed before they are read: what is committed meanwhile may be seen, but is not replaced.
        self._listed = tuple(layout.record_files(self.folder))
        records, damage = read_records(self.folder)
        if damage:
            raise StoreCorruptError(next(iter(damage.values())))
        self.records = records
        self.failures: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._starts = [0]
        for record in records:
            segment.check_sizes(self.folder, record)
            self._add_rows(record)
            self.failures |= record.failures
        self.failures = {k: why for k, why in self.failures.items() if k not in self._rows}

    def _add_rows(self, record: Record) -> None:
        # A row's place is one number, counted through all records: a tuple a row would double the
        # time that a store takes to open.
        for place, key in enumerate(record.keys, self._starts[-1]):
            self._rows.setdefault(key, place)
        self._starts.append(self._starts[-1] + len(record.keys))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str | None) -> bool:
        return key in self._rows

    def row_keys(self) -> list[str]:
        """Return the digests of the images held, in the order of the rows on disk."""
        return list(self._rows)

    def locate(self, key: str) -> tuple[str, int]:
        """Return segment id and row of an image that is held."""
        place = self._rows[key]
        number = bisect_right(self._starts, place) - 1
        return self.records[number].id, place - self._starts[number]

    def read(self, keys: Sequence[str]) -> Rows:
        """Return the rows of images that are held, every byte of them checked.

        Parameters
        ----------
        keys
            SHA-256 of each image.

        Returns
        -------
        Shape (len(keys), dim), of type `dtype`, in the order of `keys`.

        Raises
        ------
        LookupError
            An image is not held.
        StoreCorruptError
            Stored bytes do not match their checksum.
        """
        try:
            return self._read(keys)
        except StoreCorruptError:
            # A pass that ended meanwhile may have put the rows into a new segment, and `gc` may
            # have dropped the old one. If that is not it, the damage shows again.
            self.refresh()
            return self._read(keys)

    def _read(self, keys: Sequence[str]) -> Rows:
        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise LookupError(f"{len(missing)} images are not held, first {missing[0]}")
        out = np.empty((len(keys), self.dim), self.dtype)
        places = np.fromiter(map(self._rows.__getitem__, keys), np.int64, len(keys))
        order = np.argsort(places, kind="stable")
        numbers = np.searchsorted(self._starts, places[order], side="right") - 1
        for number in np.unique(numbers):
            of_record = order[slice(*np.searchsorted(numbers, [number, number + 1]))]
            rows = places[of_record] - self._starts[number]
            segment.read_rows(self.folder, self.records[number], rows, out, of_record)
        return out

    def append(
        self,
        keys: Sequence[str],
        rows: Rows,
        *,
        failures: Mapping[str, str] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Store rows durably: when this returns, they survive a crash and a power cut.

        Parameters
        ----------
        keys
            SHA-256 of each image.
        rows
            Shape (len(keys), dim), float32, finite; stored as `dtype`.
        failures
            Images that could not be encoded, and why.
        context
            Kept with the record.

        Raises
        ------
        ValueError
            Another shape, a NaN or an infinity.
        StoreWriteError
            The file system refused; nothing of this call is stored.
        """
        if rows.shape != (len(keys), self.dim) or not np.isfinite(rows).all():
            raise ValueError(
                f"rows of shape {rows.shape}, expected {(len(keys), self.dim)}, all finite"
            )
        step = segment.chunk_rows_for(len(rows))
        stored = rows.astype(self.dtype, copy=False)
        blocks = (stored[i : i + step] for i in range(0, len(rows), step))
        self._commit(keys, blocks, failures or {}, context or {})

    def rewrite(self, keys: Sequence[str], *, context: Mapping[str, Any] | None = None) -> None:
        """Put the rows of `keys`, in that order, into one segment that replaces all others.

        Rows that are not named are dropped. Readers see the old segments until the one moment
        when they see the new one.
        """
        step = segment.chunk_rows_for(len(keys))
        blocks = (self.read(keys[i : i + step]) for i in range(0, len(keys), step))
        # All that was listed, not only what is live: or a record that this one's forerunner made
        # void would come back to life when the forerunner is swept. And nothing that was committed
        # since: its rows are not among `keys`.
        self._commit(keys, blocks, self.failures, context or {}, replaces=self._listed)
        self.refresh()

    def _commit(
        self,
        keys: Sequence[str],
        blocks: Iterable[Rows],
        failures: Mapping[str, str],
        context: Mapping[str, Any],
        *,
        replaces: Sequence[str] = (),
    ) -> None:
        seen = {parent for record in self.records for parent in record.parents}
        record = commit(
            self.folder,
            self.document,
            keys,
            blocks,
            failures=failures,
            context=context,
            replaces=replaces,
            parents=[record.id for record in self.records if record.id not in seen],
        )
        self.records.append(record)
        self._listed += (record.id,)
        self._add_rows(record)
        failures = self.failures | record.failures
        self.failures = {k: why for k, why in failures.items() if k not in self._rows}

    @contextlib.contextmanager
    def lock(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the store against other passes: it saves double work, nothing rests on it.

        Parameters
        ----------
        on_wait
            Called once if another process holds it, before waiting for that.
        """
        with locked(self.folder / layout.LOCK, on_wait):
            self.refresh()
            yield


def commit(
    folder: Path,
    document: Mapping[str, Any],
    keys: Sequence[str],
    blocks: Iterable[Rows],
    *,
    failures: Mapping[str, str],
    context: Mapping[str, Any],
    replaces: Sequence[str],
    parents: Sequence[str],
) -> Record:
    """Write a segment, flush it, and only then publish the record that makes its rows exist.

    Parameters
    ----------
    folder, document
        The encoder's folder and what its `encoder.json` says.
    keys
        SHA-256 of each row's image.
    blocks
        The rows, `chunk_rows_for(len(keys))` at a time.
    failures, context, replaces, parents
        See `Record`.
    """
    record_id, dim = new_id(), int(document["identity"]["dim"])
    dtype = str(document["identity"].get("dtype", "float32"))
    sums: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]

    def summed() -> Iterator[Rows]:
        for block in blocks:
            sums.append(segment.row_sums(block))
            yield block

    path, intent = layout.segment_path(folder, record_id), layout.intent_path(folder, record_id)
    try:
        intent.parent.mkdir(exist_ok=True)
        intent.touch()
        files = segment.write_segment(path, len(keys), dim, summed(), dtype=dtype)
        record = Record(
            id=record_id,
            keys=tuple(keys),
            sums=np.concatenate(sums),
            dim=dim,
            chunk_rows=segment.chunk_rows_for(len(keys)),
            files=files,
            failures=dict(failures),
            replaces=tuple(replaces),
            parents=tuple(parents),
            context={**context, "encoder": dict(document)},
        )
        layout.publish_record(folder, record)
    except BaseException as error:  # an interruption too, lest it leaves rows that nothing names
        if find_table(folder / "commit", record_id) is None:
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StoreWriteError):
            raise write_error(path, error) from error
        raise
    finally:
        intent.unlink(missing_ok=True)
    return record


def read_records(folder: Path) -> tuple[list[Record], dict[str, str]]:
    """Return the live records, those that replaced others first, and what is wrong with the rest.

    Returns
    -------
    The records, and id to message of each record that cannot be read and that none replaces.
    """
    records, damage = {}, {}
    for record_id, path in layout.record_files(folder).items():
        try:
            records[record_id] = layout.read_record(path)
        except StoreCorruptError as error:
            # Where there are no hard links, a killed writer leaves a torn record, and its intent.
            if not layout.intent_path(folder, record_id).exists():
                damage[record_id] = str(error)
    void = {gone for record in records.values() for gone in record.replaces}
    live = [record for record in records.values() if record.id not in void]
    live.sort(key=lambda record: (not record.replaces, record.id))
    return live, {key: message for key, message in damage.items() if key not in void}
