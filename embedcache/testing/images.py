"""Small cohorts of small images, written in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from embedcache.data.manifest import Manifest, write_manifest


def write_cohort(
    folder: Path,
    *,
    n_patients: int = 12,
    n_images: int = 3,
    classes: Sequence[str] = ("abdomen", "brain", "femur"),
    cohorts: Sequence[str] = ("home",),
    size: int = 12,
    seed: int = 0,
) -> Manifest:
    """Write images that differ by class and by patient, and their manifest.

    Parameters
    ----------
    folder
        Folder that gets `data_manifest.csv` and `images/`.
    n_patients, n_images
        Number of patients of the first cohort (others have two fewer), and of images of
        each patient and class.
    classes
        Names of the classes; each patient has images of two of them, in turn.
    cohorts
        Names of the cohorts; every cohort after the first lacks the last class.
    size
        Height and width of an image in pixels.
    seed
        Seed of the patterns and the noise.
    """
    chance = np.random.default_rng(seed)
    patterns = {name: chance.integers(40, 216, (size, size)) for name in classes}
    rows = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for cohort in cohorts:
        is_first = cohort == cohorts[0]
        names = classes if is_first else classes[:-1]
        for number in range(n_patients if is_first else n_patients - 2):
            tint = chance.normal(0, 12)
            for label in (names[number % len(names)], names[(number + 1) % len(names)]):
                for frame in range(n_images):
                    pixels = patterns[label] + tint + chance.normal(0, 25, (size, size))
                    row = _row(cohort, number, label, frame)
                    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
                        folder / row["path"]
                    )
                    rows.append(row)
    return write_manifest(folder / "data_manifest.csv", sorted(rows, key=lambda r: r["image_id"]))


def _row(cohort: str, number: int, label: str, frame: int) -> dict[str, str]:
    """Return the manifest's row of one image of the `number`-th patient of a cohort."""
    patient = f"{cohort}-{number:03d}"
    image_id = f"{patient}_{label}_{frame}"
    return {
        "image_id": image_id,
        "path": f"images/{image_id}.png",
        "patient_id": patient,
        "label": label,
        "cohort": cohort,
        "device": f"device-{number % 2}",
        "frame": str(frame),
    }
