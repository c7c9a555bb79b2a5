"""The plainest encoder there is: a thumbnail. What a foundation model has to beat."""

from __future__ import annotations

from embedcache.encoders.registry import Identified
from embedcache.encoders.spec import Encoder, FloatArray, check_rows, identity_of


class PixelsEncoder(Encoder):
    """The preprocessed pixels themselves, row by row."""

    def encode(self, batch: FloatArray) -> FloatArray:
        """Return the pixels; see `Encoder.encode`."""
        return check_rows(batch.reshape(len(batch), -1).copy(), len(batch), self.spec)

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return 256


def load(identified: Identified, device: str) -> Encoder:  # noqa: ARG001 - a loader's form
    """Return the encoder; it computes nothing, so any device will do."""
    spec = identified.spec
    return PixelsEncoder(spec, identity_of(spec, "none", identified.precision))
