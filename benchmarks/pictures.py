"""Pictures that are drawn: their number and sizes are known, and nobody's patient is on them."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from embedcache.files.cores import usable_cores


def draw(path: Path, seed: int, mode: str) -> Path:
    """Draw a speckled picture of 960 x 660, 150 to 350 kB as PNG."""
    chance = np.random.default_rng(seed)
    size = (960, 660)
    coarse = Image.fromarray(chance.random((12, 17)).astype(np.float32))
    speckle = Image.fromarray(chance.rayleigh(0.5, (330, 480)).astype(np.float32))
    field = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    grain = np.asarray(speckle.resize(size, Image.Resampling.BILINEAR))
    grey = np.clip(field * grain * 160, 0, 255).astype(np.uint8)
    grey[:, :120] = grey[:, -120:] = 0
    Image.fromarray(grey).convert(mode).save(path, compress_level=6)
    return path


def draw_pictures(folder: Path, n: int, mode: str) -> list[Path]:
    """Draw 64 pictures, and copy them with a comment each: other bytes, the same work to decode."""
    folder.mkdir()
    paths = [folder / f"P{number // 8:04d}_{number % 8}.png" for number in range(n)]
    drawn = paths[:64]
    with ProcessPoolExecutor(usable_cores()) as pool:
        list(pool.map(draw, drawn, range(len(drawn)), [mode] * len(drawn)))
    contents = [path.read_bytes() for path in drawn]
    for number, path in enumerate(paths[64:], 64):
        text = b"tEXtn\0" + str(number).encode()
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        content = contents[number % len(contents)]
        path.write_bytes(content[:-12] + chunk + content[-12:])  # before the end chunk
    return paths
