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
        Takes `data_manifest.csv` and `images/`.
    n_patients, n_images
        Patients of the first cohort (others have two fewer), and images a patient and class.
    classes
        Each patient has images of two of them, in turn.
    cohorts
        Their names; every cohort after the first lacks the last class.
    size
        Height and width, in pixels.
    seed
        Of the noise.
    """
    chance = np.random.default_rng(seed)
    patterns = {name: chance.integers(40, 216, (size, size)) for name in classes}
    rows = []
    for cohort in cohorts:
        first = cohort == cohorts[0]
        known = classes if first else classes[:-1]
        for number in range(n_patients if first else n_patients - 2):
            patient = f"{cohort}-{number:03d}"
            tint = chance.normal(0, 12)
            for label in (known[number % len(known)], known[(number + 1) % len(known)]):
                for frame in range(n_images):
                    pixels = patterns[label] + tint + chance.normal(0, 25, (size, size))
                    image_id = f"{patient}_{label}_{frame}"
                    path = folder / "images" / f"{image_id}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
                    rows.append(
                        {
                            "image_id": image_id,
                            "path": f"images/{image_id}.png",
                            "patient_id": patient,
                            "label": label,
                            "cohort": cohort,
                            "device": f"device-{number % 2}",
                            "frame": str(frame),
                        }
                    )
    return write_manifest(folder / "data_manifest.csv", sorted(rows, key=lambda r: r["image_id"]))
