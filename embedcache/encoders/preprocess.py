"""From a decoded picture to the array an encoder takes, as data: exact, comparable, hashable.

Resizing is Pillow's (antialiased, 8-bit, rounded), arithmetic is float32 in the order of
torchvision's ToTensor and Normalize, so that a model published with those sees the same bits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Fit = Literal["squash", "crop"]
Resample = Literal["bilinear", "bicubic", "lanczos"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_FILTERS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How one encoder wants its pictures.

    Parameters
    ----------
    height, width
        Size of the array, in pixels.
    fit
        'squash' resizes both sides to the size; 'crop' resizes the shorter side to
        `floor(size / crop_pct)`, keeps the aspect ratio and cuts out the centre.
    resample
        Pillow's filter.
    crop_pct
        For 'crop': share of the resized shorter side that is kept.
    normalise
        'channel': x / 255, minus `mean`, over `std`, by channel. 'image': (x - mean of this
        picture) / its standard deviation x 255.
    mean, std
        One number a channel; their length is the number of channels. One channel is the mean of
        red, green and blue.
    """

    height: int
    width: int
    fit: Fit
    resample: Resample
    crop_pct: float = 1.0
    normalise: Literal["channel", "image"] = "channel"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return len(self.mean), self.height, self.width

    def document(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Preprocess:
        """Return the settings that `document` was made from."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in document.items()
        }
        return cls(**fields)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the array of one picture.

        Parameters
        ----------
        image
            Mode 'L' or 'RGB', as `images.decode_image` returns it. Grey is worked on once and
            spread over the channels: the same bits as an RGB picture with equal channels.

        Returns
        -------
        Shape `shape`, float32.
        """
        pixels = np.asarray(self._fitted(image), dtype=np.float32)
        if self.normalise == "image":
            return _standardised(pixels, len(self.mean))
        planes = [pixels] * 3 if pixels.ndim == 2 else [pixels[:, :, c] for c in range(3)]
        if len(self.mean) == 1:
            planes = [planes[0] if pixels.ndim == 2 else pixels.mean(axis=2)]
        out = np.empty(self.shape, dtype=np.float32)
        for channel, plane in enumerate(planes):
            np.divide(plane, np.float32(255), out=out[channel])
            out[channel] -= np.float32(self.mean[channel])
            out[channel] /= np.float32(self.std[channel])
        return out

    def _fitted(self, image: Image.Image) -> Image.Image:
        resample = _FILTERS[self.resample]
        if self.fit == "squash":
            return image.resize((self.width, self.height), resample)
        short = math.floor(self.height / self.crop_pct)
        width, height = image.size
        if width <= height:
            size = short, int(short * height / width)
        else:
            size = int(short * width / height), short
        left = round((size[0] - self.width) / 2.0)
        top = round((size[1] - self.height) / 2.0)
        return image.resize(size, resample).crop((left, top, left + self.width, top + self.height))


def _standardised(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    spread = grey.std()
    flat = (grey - grey.mean()) / (spread if spread > 0 else np.float32(1)) * np.float32(255)
    return np.repeat(flat[None].astype(np.float32), channels, axis=0)
