"""Pictures changed as another examiner or another machine could have changed them."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2

from embedcache.finetune.recipe import Recipe


class Gamma(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Raise grey values, as shares of the largest, to a power from 1 - `most` to 1 + `most`."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the power."""
        del flat_inputs
        # From torch's generator, which `Pictures` seeds anew for each picture.
        return {"gamma": float(torch.empty(()).uniform_(1 - self.most, 1 + self.most))}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Return the picture, same shape and type."""
        return torch.as_tensor(v2.functional.adjust_gamma(inpt, params["gamma"]))


class Speckle(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Multiply each pixel by 1 + noise: brighter echoes are noisier.

    References
    ----------
    Wagner et al. 1983, IEEE Transactions on Sonics and Ultrasonics 30(3): speckle is multiplied.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Return the picture, same shape and type; all its channels share the noise."""
        del params
        # One noise for all channels: a grey picture stays grey.
        noise = torch.randn(inpt.shape[-2:]) * self.deviation
        return (inpt * (1 + noise)).round_().clamp_(0, 255).to(torch.uint8)


def augmentation(recipe: Recipe) -> v2.Transform:
    """Return the transform of one picture, uint8, shape (channels, height, width).

    It draws from torch's own generator.
    """
    share = (recipe.translation, recipe.translation)
    steps = [
        v2.RandomHorizontalFlip(recipe.flip) if recipe.flip else None,
        v2.RandomAffine(
            recipe.rotation,
            translate=share if recipe.translation else None,
            scale=(1 - recipe.scale, 1 + recipe.scale),
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        if recipe.rotation or recipe.translation or recipe.scale
        else None,
        v2.ColorJitter(brightness=recipe.brightness, contrast=recipe.contrast)
        if recipe.brightness or recipe.contrast
        else None,
        Gamma(recipe.gamma) if recipe.gamma else None,
        Speckle(recipe.speckle) if recipe.speckle else None,
    ]
    return v2.Compose([*filter(None, steps)] or [v2.Identity()])
