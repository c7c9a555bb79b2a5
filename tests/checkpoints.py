"""Checkpoints with random weights in published layouts, and awkward pictures, all made by formula.

The real files may not travel; with a random value in every tensor the original code and ours can
be compared all the same. `golden/encoders/README.md` says how the originals' numbers were made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "encoders"
SUFFIXES = {"usfm": ".pth", "mofo": ".pth", "ultrasam": ".pth", "fetalclip": ".pt"}

# The first pattern found in a tensor's name gives its (mean, standard deviation).
_RULES = (
    (r"logit_scale$", 4.6, 0.01),
    (r"gamma(_\d+)?$", 0.3, 0.1),
    (r"(cls_token|mask_token|class_embedding)$", 0.0, 1.0),
    (r"rel_pos_[hw]$", 0.0, 0.1),  # multiplied with the queries, so kept small
    (r"(pos_embed|positional_embedding|position_bias_table|embedding(\.weight)?)$", 0.0, 0.5),
    (r"bias$", 0.0, 0.2),
)

# (width, height), mode, seed
CASES = (
    ((37, 301), "L", 1),
    ((640, 480), "L", 2),
    ((1025, 333), "RGB", 3),
    ((800, 1024), "RGB", 4),
    ((1023, 1365), "RGB", 5),
    ((301, 37), "RGBA", 6),
    ((500, 401), "RGBA", 7),
    ((333, 250), "P", 8),
    ((223, 640), "LA", 9),
    # Only UltraSAM's goldens have these: widths at which rounding down gives 1023.
    ((853, 61), "L", 10),
    ((61, 1682), "RGB", 11),
)


def layout(model: str) -> list[str]:
    """Return a published layout, a line a tensor: name, sizes, type; tabs between."""
    return (GOLDEN / "layouts" / f"{model}.txt").read_text().splitlines()


def random_tensors(lines: Iterable[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw the tensors of some lines of a layout.

    Each has a generator of its own, seeded by its name: a draw depends neither on the order of the
    lines nor on the others. None is left at a neutral value (zero bias, unit scale), so a wrongly
    mapped or forgotten one shows.
    """
    tensors = {}
    for name, sizes, dtype in (line.split("\t") for line in lines):
        shape = tuple(int(size) for size in sizes.split(",") if size)
        if dtype == "int64":  # BEiT's index of positions, or a counter of batches
            index = _beit_positions(shape[0]) if len(shape) == 2 else torch.full(shape, 1000)
            tensors[name] = index
            continue
        # A norm's scale is near 1; a matrix or a convolution keeps unit variance.
        usual = (1.0, 0.2) if len(shape) == 1 else (0.0, float(np.prod(shape[1:])) ** -0.5)
        mean, std = next((rule[1:] for rule in _RULES if re.search(rule[0], name)), usual)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        chance = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        draw = mean + np.float32(std) * chance.standard_normal(shape, dtype=np.float32)
        tensors[name] = torch.from_numpy(np.asarray(draw, dtype=dtype))
    return tensors


def _beit_positions(n_tokens: int) -> torch.Tensor:
    """Index BEiT's table of relative positions: CLS first, then a square grid row by row."""
    side, index = round((n_tokens - 1) ** 0.5), np.empty((n_tokens, n_tokens), dtype=np.int64)
    row, column = np.divmod(np.arange(side * side), side)
    span = 2 * side - 1
    index[1:, 1:] = (row[:, None] - row + side - 1) * span + column[:, None] - column + side - 1
    index[0, :], index[:, 0], index[0, 0] = span**2, span**2 + 1, span**2 + 2
    return torch.from_numpy(index)


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest of drawn tensors: name and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def published(model: str, tensors: Mapping[str, Any], *, module_prefix: bool = False) -> Any:
    """Return what the published file of a model holds, given its tensors."""
    if model == "ultrasam":
        meta = {"experiment_name": "UltraSAM", "seed": 0, "iter": 30000, "cfg": "a = 1\n"}
        return {"meta": meta, "state_dict": dict(tensors)}
    if model == "fetalclip":
        prefix = "module." if module_prefix else ""
        state = {prefix + name: tensor for name, tensor in tensors.items()}
        return {"epoch": 20, "name": "FetalCLIP", "state_dict": state}
    return dict(tensors)


def write_checkpoint(
    model: str, path: Path, *, seed: int = 0, module_prefix: bool = False, scaled: str = ""
) -> dict[str, torch.Tensor]:
    """Write a checkpoint as it is published, and return its tensors.

    Parameters
    ----------
    model
        'usfm', 'mofo', 'ultrasam' or 'fetalclip'.
    path, seed
        Where to, and which weights.
    module_prefix
        Whether FetalCLIP's names start with 'module.'.
    scaled
        Tensors whose name this pattern is found in are multiplied by 1e-3: what feeds the first
        norm is then so small that its epsilon shows.
    """
    tensors = random_tensors(layout(model), seed)
    if scaled:
        tensors = {k: v * 1e-3 if re.search(scaled, k) else v for k, v in tensors.items()}
    torch.save(published(model, tensors, module_prefix=module_prefix), path)
    return tensors


def blank_tensors(model: str) -> dict[str, torch.Tensor]:
    """Return tensors of a layout that take no room on disk: one zero behind every value."""
    return {
        name: torch.zeros((), dtype=getattr(torch, dtype)).expand(
            tuple(int(size) for size in sizes.split(",") if size)
        )
        for name, sizes, dtype in (line.split("\t") for line in layout(model))
    }


def random_state(network: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random value for every tensor of a network; running variances stay positive."""
    lines = [
        f"{name}\t{','.join(map(str, tensor.shape))}\t{str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in network.state_dict().items()
    ]
    state = random_tensors(lines, seed)
    return {k: v.abs() + 0.1 if k.endswith("running_var") else v for k, v in state.items()}


def case_name(size: tuple[int, int], mode: str, seed: int) -> str:
    """Return what the goldens call a picture."""
    return f"{mode}_{size[0]}x{size[1]}_{seed}"


def make_image(size: tuple[int, int], mode: str, seed: int) -> Image.Image:
    """Return a slanted gradient, a disc and speckle, other ones in every band; alpha is noise."""
    width, height = size
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / width, y / height

    def band(shift: float) -> np.ndarray:
        slope = 90 * ((1 + shift) * x + (1 - shift) * y)
        disc = 70 * ((x - 0.4 - 0.1 * shift) ** 2 + (y - 0.6) ** 2 < 0.06)
        speckle = chance.integers(-60, 61, (height, width))
        return np.clip(slope + disc + speckle, 0, 255).astype(np.uint8)

    if mode == "P":  # indices into a palette without order
        image = Image.frombytes("P", size, band(0.0).tobytes())
        image.putpalette(chance.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    shifts = (0.0,) if mode[0] == "L" else (0.0, 0.5, -0.5)
    bands = [Image.fromarray(band(shift)) for shift in shifts]
    if mode.endswith("A"):
        bands.append(Image.fromarray(chance.integers(0, 256, (height, width), dtype=np.uint8)))
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0]
