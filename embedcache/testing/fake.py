"""An encoder that needs no weights, no torch and no time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import (
    Encoder,
    EncoderSpec,
    FloatArray,
    WeightsSource,
    check_rows,
    identity_of,
)


class FakeEncoder(Encoder):
    """A fixed random projection of 8 x 8 grey pixels.

    Parameters
    ----------
    dim
        Length of an embedding.
    name
        The encoder's name.
    weights
        Stands for the digest of the weights; another one gives other rows.
    spoil
        Called with each batch's rows before they are returned, to break them on purpose.
    """

    def __init__(
        self,
        dim: int = 8,
        *,
        name: str = "fake",
        weights: str = "0",
        spoil: Callable[[FloatArray], FloatArray] = lambda rows: rows,
    ) -> None:
        spec = EncoderSpec(
            name=name,
            architecture="fake",
            output="projection",
            dim=dim,
            preprocess=Preprocess(
                height=8, width=8, fit="squash", resample="bilinear", mean=(0.5,), std=(0.5,)
            ),
            weights=WeightsSource(kind="none"),
            loader="embedcache.testing.fake:FakeEncoder",
        )
        super().__init__(spec, identity_of(spec, weights, "fp32"))
        seed = [ord(letter) for letter in weights]
        self._matrix = np.random.default_rng(seed).normal(size=(64, dim)).astype(np.float32)
        self._spoil = spoil
        self.n_encoded = 0

    def encode(self, batch: FloatArray) -> FloatArray:
        """Return the projections; see `Encoder.encode`."""
        self.n_encoded += len(batch)
        # One image at a time: BLAS may round otherwise in a batch of another size.
        rows = np.stack([image.reshape(-1) @ self._matrix for image in batch])
        return self._spoil(check_rows(rows, len(batch), self.spec))

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return 4
