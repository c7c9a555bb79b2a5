"""One encoder's rows: look up by image digest, append, read, put in order.

Everything here is safe with any number of processes: segments and records are written once, and
the record is what makes rows exist.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embedcache.encoder_folders import ENCODER_DOCUMENT, read_encoder_document
from embedcache.errors import StoreCorruptError, StoreMismatchError
from embedcache.files.arrays import Rows
from embedcache.files.backend import Location
from embedcache.files.documents import seal
from embedcache.files.locks import locked
from embedcache.store import layout, segment
from embedcache.store.commits import lost_keys, publish_segment, read_records
from embedcache.store.layout import Record


class EmbeddingStore:
    """The rows of one encoder fingerprint.

    Parameters
    ----------
    folder
        Folder of the encoder, with an `encoder.json`.

    Attributes
    ----------
    document
        Content of `encoder.json`: name, fingerprint, identity, spec, versions, created.
    dim
        Number of values in a row.
    dtype
        Type of the rows: float32, or uint8 where rows are pictures.
    records
        The live records; of two rows for one image, that of the earlier record here counts.
    failures
        Reason for each image that could not be encoded, by the image's SHA-256.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.document = read_encoder_document(folder)
        self.dim = int(self.document["identity"]["dim"])
        self.dtype = np.dtype(self.document["identity"].get("dtype", "float32"))
        self.refresh()

    @classmethod
    def open_or_create(cls, folder: Location, document: Mapping[str, Any]) -> EmbeddingStore:
        """Open the store of an encoder, or make an empty one.

        Parameters
        ----------
        folder
            Folder of the encoder, made where there is none.
        document
            Content of `encoder.json`: name, fingerprint, identity, spec, versions and time of the
            encoder, as JSON values.

        Raises
        ------
        StoreMismatchError
            The folder holds another encoder's rows.
        """
        # Two processes may make it at once: the first document stands, and is compared below.
        with contextlib.suppress(FileExistsError):
            if not (folder / ENCODER_DOCUMENT).exists():
                (folder / ENCODER_DOCUMENT).put(seal(dict(document)))
        store = cls(folder)
        if store.fingerprint != document["fingerprint"]:
            raise StoreMismatchError(
                f"{folder} holds fingerprint {store.fingerprint[:12]}, expected "
                f"{document['fingerprint'][:12]}; the folder was renamed: give it its name back"
            )
        return store

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides a row but the image; see `encoders.spec.fingerprint_of`."""
        return str(self.document["fingerprint"])

    @property
    def name(self) -> str:
        """The encoder's name."""
        return str(self.document["name"])

    @property
    def size_bytes(self) -> int:
        """Size of the live segments in bytes."""
        return sum(record.size_bytes for record in self.records)

    def refresh(self) -> None:
        """Look again at what is committed.

        Raises
        ------
        StoreCorruptError
            A live record or segment is missing, cut short or damaged.
        """
        while True:
            files = layout.record_files(self.folder)
            try:
                self._load(files)
                return
            except StoreCorruptError:
                # What was replaced and swept since it was listed is no damage.
                if layout.record_files(self.folder) == files:
                    raise

    def _load(self, files: Mapping[str, Location]) -> None:
        records, errors = read_records(self.folder, files)
        if errors:
            raise next(iter(errors.values()))
        self._listed = tuple(files)
        self.records = records
        self.failures: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._starts = [0]
        sizes = segment.file_sizes(self.folder)  # after the records: a listed segment is whole
        for record in records:
            segment.check_sizes(self.folder, record, sizes)
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

    @property
    def lost(self) -> frozenset[str]:
        """SHA-256 of each image whose row was lost, or may have been, and is not there again."""
        return lost_keys(self.records)

    def row_keys(self) -> list[str]:
        """Return the SHA-256 of each image with a row, in the order of the rows on disk."""
        return list(self._rows)

    def locate(self, key: str) -> tuple[str, int]:
        """Return the segment's id and the row's number in it, for an image that has a row."""
        place = self._rows[key]
        number = bisect_right(self._starts, place) - 1
        return self.records[number].id, place - self._starts[number]

    def read(self, keys: Sequence[str]) -> Rows:
        """Return the rows of images, every byte of them checked.

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
            An image has no row.
        StoreCorruptError
            Stored bytes do not match their checksum.
        """
        try:
            return self._read(keys)
        except StoreCorruptError as error:
            # A pass that ended meanwhile may have put the rows into a new segment, and `gc` may
            # have dropped the old one. If that is not it, the damage shows again.
            self.refresh()
            try:
                return self._read(keys)
            except LookupError:  # a repair has taken the damaged rows out meanwhile
                raise error from None

    def _read(self, keys: Sequence[str]) -> Rows:
        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise LookupError(f"{len(missing)} images have no row, first {missing[0]}")
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
            One row an image, shape (len(keys), dim), float32, finite; stored as `dtype`.
        failures
            Reason for each image that could not be encoded, by the image's SHA-256.
        context
            JSON values kept with the rows.

        Raises
        ------
        ValueError
            Another shape, a NaN or an infinity.
        StoreWriteError
            The storage refused; no row of this call is stored.
        """
        if rows.shape != (len(keys), self.dim) or not np.isfinite(rows).all():
            raise ValueError(
                f"rows of shape {rows.shape}, expected {(len(keys), self.dim)}, all finite"
            )
        step = segment.chunk_rows_for(len(rows))
        stored = rows.astype(self.dtype, copy=False)
        blocks = (stored[i : i + step] for i in range(0, len(rows), step))
        self._publish(keys, blocks, failures or {}, context or {})

    def rewrite(
        self,
        keys: Sequence[str],
        *,
        context: Mapping[str, Any] | None = None,
        lost: Collection[str] | None = None,
    ) -> None:
        """Put the rows of `keys`, in that order, into one segment that replaces all others.

        Rows that are not named are dropped. Readers see the old segments until the one moment
        when they see the new one.

        Parameters
        ----------
        keys
            SHA-256 of each image that keeps its row.
        context
            JSON values kept with the rows.
        lost
            SHA-256 of each image that counts as lost from now on; None for `self.lost`.
        """
        step = segment.chunk_rows_for(len(keys))
        blocks = (self.read(keys[i : i + step]) for i in range(0, len(keys), step))
        # All that was listed, not only what is live: or a record that this one's forerunner made
        # void would come back to life when the forerunner is swept. And nothing that was committed
        # since: its rows are not among `keys`.
        lost = self.lost if lost is None else lost
        self._publish(
            keys, blocks, self.failures, context or {}, replaces=self._listed, lost=sorted(lost)
        )
        self.refresh()

    def _publish(
        self,
        keys: Sequence[str],
        blocks: Iterable[Rows],
        failures: Mapping[str, str],
        context: Mapping[str, Any],
        *,
        replaces: Sequence[str] = (),
        lost: Sequence[str] = (),
    ) -> None:
        """Publish one segment, and count its rows as held from now on."""
        # Only what no record names yet: through their own parents the newest lead to all.
        seen = {parent for record in self.records for parent in record.parents}
        record = publish_segment(
            self.folder,
            self.document,
            keys,
            blocks,
            failures=failures,
            context=context,
            replaces=replaces,
            parents=[record.id for record in self.records if record.id not in seen],
            lost=lost,
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
            Function called once, before waiting, if another process holds the store.
        """
        with locked(self.folder / layout.LOCK, on_wait):
            self.refresh()
            yield
