"""Every error `embedcache` raises on purpose, as one tree.

EmbedcacheError
├ ManifestError(ValueError)         a manifest that cannot be used; names file, line, column, value
├ ImageReadError(OSError)           one image that cannot be read or decoded
├ EncoderError
│ ├ UnknownEncoderError(LookupError)
│ ├ EncoderWeightsError(OSError)    weights missing, or not what they say
│ ├ DeviceError(RuntimeError)       a device that this machine lacks
│ └ EncoderOutputError(ValueError)  wrong shape, NaN or infinity
├ StoreError
│ ├ StoreMismatchError(ValueError)  another encoder, another format
│ ├ StoreCorruptError(OSError)      stored bytes do not match their checksum
│ ├ StoreReadError(OSError)         refused, or of an unknown shape; not known to be damaged
│ ├ StoreWriteError(OSError)        the disk refused; nothing finished is lost
│ └ MissingEmbeddingsError(LookupError)
├ LeakageError(ValueError)          a patient on both sides of a split
├ CatalogError(ValueError)          SQL that cannot be run
├ RunError(ValueError)              a run that cannot be made as asked
└ MissingExtraError(ImportError)    an optional dependency is not installed

Messages are one line: what was found, what was expected, the first offender and how many, the
way out.
"""

from __future__ import annotations

from typing import Any


class EmbedcacheError(Exception):
    """Base of every error raised on purpose."""


class ManifestError(EmbedcacheError, ValueError):
    """A manifest that cannot be used as it stands."""


class ImageReadError(EmbedcacheError, OSError):
    """One image file that cannot be read or decoded."""


class EncoderError(EmbedcacheError):
    """Base of what goes wrong with an encoder."""


class UnknownEncoderError(EncoderError, LookupError):
    """No encoder of that name is registered."""


class EncoderWeightsError(EncoderError, OSError):
    """Weights that are missing, damaged, or another model's."""


class DeviceError(EncoderError, RuntimeError):
    """A device or precision that this machine cannot give."""


class EncoderOutputError(EncoderError, ValueError):
    """An encoder returned another shape, a NaN or an infinity."""


class StoreError(EmbedcacheError):
    """Base of what goes wrong with a store."""


class StoreMismatchError(StoreError, ValueError):
    """The store holds another encoder's rows, or another format."""


class StoreCorruptError(StoreError, OSError):
    """Stored bytes do not match their checksum, or are gone.

    Parameters
    ----------
    message
        One line: the file, what is wrong with it, the way out.
    is_missing
        Whether the file is gone, rather than damaged.
    problem
        Words that follow the file's name and say what is wrong; '' for the usual ones.

    Attributes
    ----------
    problem
        What is wrong, in a few words.
    """

    def __init__(self, message: str, *, is_missing: bool = False, problem: str = "") -> None:
        super().__init__(message)
        self.is_missing = is_missing
        usual = "is missing" if is_missing else "does not match its checksum"
        self.problem = problem or usual

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword arguments do not survive pickling by themselves.
        return _corrupt, (str(self), self.is_missing, self.problem)


def _corrupt(message: str, is_missing: bool, problem: str) -> StoreCorruptError:
    return StoreCorruptError(message, is_missing=is_missing, problem=problem)


class StoreReadError(StoreError, OSError):
    """What is stored cannot be read: refused, or of an unknown shape. It may be whole."""


class StoreWriteError(StoreError, OSError):
    """The file system refused a write; what was acknowledged before is safe."""


class MissingEmbeddingsError(StoreError, LookupError):
    """Images were asked for that the store does not hold."""


class LeakageError(EmbedcacheError, ValueError):
    """A patient, or an image, stands on both sides of a split."""


class CatalogError(EmbedcacheError, ValueError):
    """A query or a predicate that cannot be run."""


class RunError(EmbedcacheError, ValueError):
    """A run that cannot be made as asked."""


class MissingExtraError(EmbedcacheError, ImportError):
    """An optional dependency is not installed."""
