"""An encoder: the facts about it, its fingerprint, and the interface it offers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.data.images import decode_image, grey_or_rgb
from embedcache.encoders.choices import Precision
from embedcache.encoders.preprocess import Preprocess
from embedcache.errors import EncoderOutputError, ImageReadError
from embedcache.files.documents import known_shape
from embedcache.files.durable import canonical_json
from embedcache.files.regular import read_regular

FloatArray = NDArray[np.float32]
Picture = Image.Image | Path | str  # itself, or the path of an image file


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSource:
    """Where an encoder's weights come from.

    Parameters
    ----------
    kind
        'hub': a file on the Hugging Face hub; 'folder': a file beside a model's description;
        'package': a file inside an installed distribution;
        'user': a file the user downloads and registers; 'run': kept by a fine-tuning run;
        'random': drawn from `seed`; 'none': there are none.
    location
        Hub repository, path of the folder, import name of the package, the page that publishes the
        file, or the run.
    file
        File name there; for 'hub', '' means the library's default.
    licence
        Licence of the weights.
    commercial
        Whether that licence allows commercial use; None where nobody says.
    seed
        Seed of random weights.
    """

    kind: Literal["hub", "folder", "package", "user", "run", "random", "none"]
    location: str = ""
    file: str = ""
    licence: str = "not stated"
    commercial: bool | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """The facts about one encoder, known without loading it.

    Parameters
    ----------
    name
        Name that the user types.
    architecture
        Name of the network that the weights are poured into, with the library that builds it.
    output
        Name of the network's value that is the embedding, such as 'cls' or 'patch-mean'.
    dim
        Length of an embedding.
    preprocess
        Preprocessing from a picture to the array that the network takes.
    weights
        Source of the weights.
    loader
        Text 'module:function'; the function takes an `Identified` and a device, by position, and
        returns the `Encoder`.
    parameters
        Number of parameters, in millions.
    reference
        Paper or model card.
    memory_gb
        Memory of a pass at the encoder's own batch size, beyond torch itself, in 10^9 bytes.
    overlap
        Data that its pretraining is known to share with public benchmarks; '' for none.
    """

    name: str
    architecture: str
    output: str
    dim: int
    preprocess: Preprocess
    weights: WeightsSource
    loader: str
    parameters: float = 0.0
    reference: str = ""
    memory_gb: float = 1.0
    overlap: str = ""

    def document(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return {**asdict(self), "preprocess": self.preprocess.document()}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> EncoderSpec:
        """Return the facts that `document` was made from.

        Raises
        ------
        StoreReadError
            They are none that this release writes.
        """
        with known_shape("stored facts about an encoder"):
            return cls(
                **{
                    **document,
                    "preprocess": Preprocess.from_document(document["preprocess"]),
                    "weights": WeightsSource(**document["weights"]),
                }
            )


def identity_of(spec: EncoderSpec, weights_digest: str, precision: Precision) -> dict[str, Any]:
    """Return everything that decides an embedding's value, but for the image's bytes.

    The name is not part of it, nor is batch size, device or number of workers.

    Parameters
    ----------
    spec
        Facts about the encoder.
    weights_digest
        SHA-256 of the weights; 'none' where there are none.
    precision
        Precision of the computation.
    """
    return {
        "architecture": spec.architecture,
        "output": spec.output,
        "dim": spec.dim,
        "preprocess": spec.preprocess.document(),
        "weights": weights_digest,
        "precision": precision,
        "dtype": "float32",
    }


def fingerprint_of(identity: dict[str, Any]) -> str:
    """Return the digest that makes embeddings comparable: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


class Encoder(ABC):
    """A frozen model: pictures in, embeddings out, NumPy at both ends.

    Parameters
    ----------
    spec
        Facts about the encoder.
    identity
        Everything that decides a value, as `identity_of` returns it; `fingerprint` is its digest.
    """

    def __init__(self, spec: EncoderSpec, identity: dict[str, Any]) -> None:
        self.spec = spec
        self.identity = identity
        self.fingerprint = fingerprint_of(identity)

    def preprocess(self, image: Image.Image) -> FloatArray:
        """Return the array of one picture of any mode, shape `spec.preprocess.shape`, float32."""
        return self.spec.preprocess(grey_or_rgb(image))

    @abstractmethod
    def encode(self, batch: FloatArray) -> FloatArray:
        """Return one embedding per preprocessed picture.

        Parameters
        ----------
        batch
            Preprocessed pictures, stacked: shape (n, channels, height, width), float32.

        Returns
        -------
        Shape (n, spec.dim), float32, not normalised, input order.

        Raises
        ------
        EncoderOutputError
            Another shape, a NaN or an infinity.
        """

    def encode_async(self, batch: FloatArray) -> Callable[[], FloatArray]:
        """Start encoding a batch and return a function that waits for its embeddings.

        On a device with its own queue the next batch can be prepared and copied meanwhile. `batch`
        may be overwritten as soon as this returns.
        """
        rows = self.encode(batch)
        # An encoder may well return a view of its input, or the same array each time.
        rows = rows.copy() if isinstance(rows, np.ndarray) else rows
        return lambda: rows

    def embed(self, images: Picture | Sequence[Picture]) -> FloatArray:
        """Return the embeddings of pictures or of image files, shape (n, spec.dim), in order.

        For a few pictures at hand; `embedcache.open(...).extract` stores embeddings, and is faster.

        Parameters
        ----------
        images
            Pictures of any mode, or paths of image files; one alone is a sequence of one.

        Raises
        ------
        ImageReadError
            A file is missing, no image, or damaged.
        """
        pictures = [images] if isinstance(images, Picture) else images
        rows = [np.empty((0, self.spec.dim), np.float32)]
        for first in range(0, len(pictures), self.batch_size):
            batch = pictures[first : first + self.batch_size]
            arrays = [self.preprocess(_opened(picture)) for picture in batch]
            rows.append(check_rows(self.encode(np.stack(arrays)), len(batch), self.spec))
        return np.concatenate(rows)

    @property
    def batch_size(self) -> int:
        """Batch size that suits this encoder on its device."""
        return 16


class TextEncoder(Protocol):
    """The half of a model that reads, into the space of its image embeddings."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return one row a text, shape (n, dim), float32, not normalised."""


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    try:
        return decode_image(read_regular(picture))
    except OSError as error:  # `ImageReadError` is one, without the name of the file
        raise ImageReadError(f"{picture}: {error.strerror or error}") from None


def check_rows(rows: Any, n_rows: int, spec: EncoderSpec) -> FloatArray:
    """Return embeddings as contiguous float32, or raise what is wrong with them.

    Parameters
    ----------
    rows
        Embeddings, shape (n_rows, spec.dim).
    n_rows
        Number of pictures that were encoded.
    spec
        Facts about the encoder.

    Raises
    ------
    EncoderOutputError
        No array of numbers, or another shape than (n_rows, spec.dim).
    """
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
        kind = f"an array of {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise EncoderOutputError(
            f"encoder '{spec.name}' returned {kind}, expected an array of float32"
        )
    if rows.shape != (n_rows, spec.dim):
        raise EncoderOutputError(
            f"encoder '{spec.name}' returned shape {rows.shape}, expected {(n_rows, spec.dim)}"
        )
    return np.ascontiguousarray(rows, dtype=np.float32)
