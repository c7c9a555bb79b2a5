"""From a decoded picture to the array an encoder takes, as data: exact, comparable, hashable.

Resizing is Pillow's (antialiased, 8-bit, rounded) or, for models that were trained behind it,
OpenCV's; arithmetic is float32 in the order of torchvision's ToTensor and Normalize. A model sees
the bits that its authors' code would have given it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.encoders.choices import Fit
from embedcache.errors import EncoderError

Resample = Literal["bilinear", "bicubic", "lanczos", "cv2-bilinear"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_FILTERS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Preprocessing of one encoder: way of fitting, size, and arithmetic.

    Parameters
    ----------
    height, width
        Size of the array, in pixels.
    fit
        'squash' resizes both sides to the size; 'crop' resizes the shorter side to
        `floor(size / crop_pct)`, keeps the aspect ratio and cuts out the centre; 'pad-square'
        puts the picture into the middle of a black square and resizes that; 'longest-side' resizes
        the longer side to the size, rounds the other down, and fills up with black on the right
        and below. Black is 0 before normalising.
    resample
        Pillow's filter, or OpenCV's `INTER_LINEAR`, which does not antialias.
    crop_pct
        For 'crop': share of the resized shorter side that is kept.
    normalise
        'channel': x / 255, minus `mean`, over `std`, by channel. 'image': (x - mean of this
        picture) / its standard deviation x 255. 'none': x, from 0 to 255.
    mean, std
        One number a channel; their length is the number of channels. One channel is the mean of
        red, green and blue.
    """

    height: int
    width: int
    fit: Fit
    resample: Resample
    crop_pct: float = 1.0
    normalise: Literal["channel", "image", "none"] = "channel"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return len(self.mean), self.height, self.width

    def refitted(self, fit: str) -> Preprocess:
        """Return the same with another way of fitting.

        Raises
        ------
        EncoderError
            There is no such way, or it needs a square.
        """
        if fit not in get_args(Fit):
            raise EncoderError(f"no preprocessing '{fit}'; expected {', '.join(get_args(Fit))}")
        if fit == "crop" and self.height != self.width:
            raise EncoderError(
                f"'crop' needs a square input, this one is {self.height} x {self.width}"
            )
        return replace(self, fit=cast(Fit, fit))

    def unnormalised(self) -> Preprocess:
        """Return the same fit without its arithmetic: three channels, from 0 to 255."""
        return replace(self, normalise="none", mean=(0.0,) * 3, std=(1.0,) * 3)

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
        if self.normalise == "none":
            return np.stack(planes, out=out)
        for channel, plane in enumerate(planes):
            # In this order: one factor and one offset would round to other bits.
            np.divide(plane, np.float32(255), out=out[channel])
            out[channel] -= np.float32(self.mean[channel])
            out[channel] /= np.float32(self.std[channel])
        return out

    def _fitted(self, image: Image.Image) -> Image.Image:
        # Pillow gives sizes as (width, height), arrays have (height, width).
        target, (width, height) = (self.width, self.height), image.size
        if self.fit == "pad-square":
            side = max(width, height)
            image = _on_black(image, (side, side), ((side - width) // 2, (side - height) // 2))
        if self.fit in {"squash", "pad-square"}:
            return self._resized(image, target)
        if self.fit == "longest-side":
            scale = min(target[0] / width, target[1] / height)
            size = max(1, int(width * scale)), max(1, int(height * scale))
            return _on_black(self._resized(image, size), target, (0, 0))
        # torchvision's Resize rounds the longer side down, and its CenterCrop rounds half to even.
        short = math.floor(self.height / self.crop_pct)
        if width <= height:
            size = short, int(short * height / width)
        else:
            size = int(short * width / height), short
        left = round((size[0] - self.width) / 2.0)
        top = round((size[1] - self.height) / 2.0)
        box = (left, top, left + self.width, top + self.height)
        return self._resized(image, size).crop(box)

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if self.resample == "cv2-bilinear":
            return Image.fromarray(resize_bilinear(np.asarray(image), size))
        return image.resize(size, _FILTERS[self.resample])


def _on_black(image: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size)
    canvas.paste(image, at)
    return canvas


def resize_bilinear(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a picture resized as OpenCV's `INTER_LINEAR` does it: every bit of it.

    That is fixed-point arithmetic with 11 bits; rounding floats instead moves one pixel in eight
    by a grey level. Doing it here spares a package of 60 MB, and keeps the bits of an embedding
    from hanging on which build of it is installed (found equal to 4.11 and 5.0).

    Parameters
    ----------
    pixels
        Shape (h, w) or (h, w, channels), uint8.
    size
        Width and height wanted.

    References
    ----------
    OpenCV, modules/imgproc/src/resize.cpp: HResizeLinear and VResizeLinear for uchar.
    """
    left, right, w_left, w_right = _taps(pixels.shape[1], size[0], zero_outside=True)
    upper, lower, w_upper, w_lower = _taps(pixels.shape[0], size[1], zero_outside=False)
    spread = (slice(None), *[None] * (pixels.ndim - 2))
    wide = pixels.astype(np.int32)
    wide = wide[:, left] * w_left[spread] + wide[:, right] * w_right[spread]
    # OpenCV's own shifts: 4, 16 and 2 undo the 11 bits of weight along each of two axes.
    wide >>= 4
    tall = (slice(None), *[None] * (pixels.ndim - 1))
    out = (wide[upper] * w_upper[tall] >> 16) + (wide[lower] * w_lower[tall] >> 16)
    return ((out + 2) >> 2).astype(np.uint8)


def _taps(
    n_in: int, n_out: int, *, zero_outside: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Return the two neighbours of each output pixel along one axis, and their weights x 2048.

    Beyond the border OpenCV drops the outer neighbour along a row, and keeps both weights, of the
    same pixel twice, along a column: with integers that rounds differently.
    """
    # In float32, as there: in float64 some pixels would get other weights.
    place = ((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    if zero_outside:
        share[(first < 0) | (first >= n_in - 1)] = 0
    weights = [np.rint(part * 2048).astype(np.int32) for part in (1 - share, share)]
    ends = [np.clip(first + step, 0, n_in - 1) for step in (0, 1)]
    return ends[0], ends[1], weights[0], weights[1]


def _standardised(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    spread = grey.std()
    # A picture of one grey value has no spread; it becomes zeros.
    flat = (grey - grey.mean()) / (spread if spread > 0 else np.float32(1)) * np.float32(255)
    return np.repeat(flat[None].astype(np.float32), channels, axis=0)
