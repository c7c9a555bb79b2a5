"""A cohort of drawn pictures without a fault, and faults to plant in it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

import embedcache
from embedcache.data.manifest import write_manifest
from embedcache.project import Project

SIZE = 64
CLASSES = ("abdomen", "brain")


def draw(chance: np.random.Generator, label: int, tint: np.ndarray) -> np.ndarray:
    """Draw waves: some of the class, some of the patient, some of the picture, and speckle."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    of_class = np.sin(2 * np.pi * ((2 + label) * x + y)) * 30
    waves = chance.uniform(0.5, 3, (6, 2)), chance.uniform(0, 6.28, 6)
    own = sum(
        np.sin(2 * np.pi * (a * x + b * y) + phase) for (a, b), phase in zip(*waves, strict=True)
    )
    grey = 110 + of_class + 10 * own + tint * np.cos(3 * x) + chance.normal(0, 4, x.shape)
    return np.clip(grey, 0, 235).astype(np.uint8)


def write(folder: Path, *, n_patients: int = 20, seed: int = 0, abroad: int = 6) -> list[dict]:
    """Write pictures and manifest of patients with two images of one class each; return the rows.

    Devices change from patient to patient, and say nothing of the class.
    """
    chance = np.random.default_rng(seed)
    rows = []
    for number in range(n_patients + abroad):
        cohort = "home" if number < n_patients else "abroad"
        label = (number // 2) % 2
        tint = chance.normal(0, 10)
        for frame in range(2):
            name = f"{cohort}-{number:02d}-{frame}"
            Image.fromarray(draw(chance, label, tint)).save(folder / f"{name}.png")
            rows.append(
                {
                    "image_id": name,
                    "path": f"{name}.png",
                    "patient_id": f"P{number:02d}",
                    "label": CLASSES[label],
                    "cohort": cohort,
                    "device": f"device-{number % 2}",
                }
            )
    write_manifest(folder / "data_manifest.csv", rows)
    return rows


def rewrite(folder: Path, rows: list[dict]) -> Project:
    """Write the manifest anew and return the project, encoded."""
    write_manifest(folder / "data_manifest.csv", rows)
    project = embedcache.open(folder)
    project.extract("pixels")
    return project


def read(folder: Path) -> list[dict]:
    with (folder / "data_manifest.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file))


def brighter(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels.astype(int) + 12, 0, 255).astype(np.uint8)


def cropped(pixels: np.ndarray) -> np.ndarray:
    return pixels[1:-1, 1:-1]


CHANGES = {"jpeg": jpeg, "brighter": brighter, "cropped": cropped}


def copy_of(folder: Path, row: dict, change, **changes: str) -> dict:
    """Write a changed copy of an image, and return its row."""
    pixels = np.asarray(Image.open(folder / row["path"]))
    copy = {**row, "image_id": "copy", "path": "copy.png", **changes}
    Image.fromarray(np.ascontiguousarray(change(pixels))).save(folder / copy["path"])
    return copy
