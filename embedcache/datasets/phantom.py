"""Generated B-mode pictures of two cohorts: nothing to download, nobody's data.

A picture is made as a scanner makes it: echogenicity of simple anatomy on a grid of beams and
depths, fully developed speckle (smoothed complex Gaussian noise, so a Rayleigh amplitude),
attenuation with depth, shadows behind bone, log compression, and scan conversion to a fan. Each
patient has an anatomy of its own, each frame a probe position of its own. The second cohort has
another scanner and fewer classes, as an external test has.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from embedcache.files.arrays import Floats
from embedcache.files.durable import replace

HEIGHT: Final = 224
WIDTH: Final = 288
_DEPTHS: Final = 256
_BEAMS: Final = 160
_SHADE: Final = 0.08  # amplitude left behind bone


@dataclass(frozen=True, slots=True)
class Scanner:
    """Settings that set one device's pictures apart.

    Parameters
    ----------
    half_angle
        Half of the fan's opening angle, in radians.
    near
        Radius of the probe's face, as a share of the depth, from 0 to 1.
    attenuation
        Loss over the full depth, as the natural logarithm of the amplitude.
    dynamic_range
        Range of amplitudes between black and white, in dB.
    lateral
        Standard deviation of the smoothing of speckle across beams, in beams.
    axial
        Standard deviation of the smoothing of speckle along beams, in depth samples.
    """

    half_angle: float
    near: float
    attenuation: float
    dynamic_range: float
    lateral: float
    axial: float


@dataclass(frozen=True, slots=True)
class Cohort:
    """One cohort of generated patients.

    Parameters
    ----------
    name
        Name of the cohort in the manifest.
    center, device
        Names of its hospital and its scanner in the manifest.
    prefix
        Text before each patient's number.
    scanner
        Settings of its scanner.
    n_patients
        Number of patients.
    classes
        Classes that its images may show.
    """

    name: str
    center: str
    device: str
    prefix: str
    scanner: Scanner
    n_patients: int
    classes: tuple[str, ...]


COHORTS: Final = (
    Cohort(
        name="north",
        center="Northland",
        device="Phantom One",
        prefix="NO",
        scanner=Scanner(0.62, 0.22, 1.1, 56.0, 1.6, 1.1),
        n_patients=36,
        classes=(
            "Fetal abdomen",
            "Fetal brain",
            "Fetal femur",
            "Fetal thorax",
            "Maternal cervix",
        ),
    ),
    Cohort(
        name="south",
        center="Southland",
        device="Phantom Two",
        prefix="SO",
        scanner=Scanner(0.50, 0.12, 1.9, 46.0, 2.6, 1.7),
        n_patients=16,
        classes=("Fetal abdomen", "Fetal brain", "Fetal femur"),
    ),
)


def phantom_rows(seed: int = 0, folder: str = "phantom") -> list[dict[str, str]]:
    """Return the manifest of the two cohorts.

    Each patient has two to four of the classes, and one to three frames of each.

    Parameters
    ----------
    seed
        Seed of the choice of classes and frames of each patient.
    folder
        Folder that each path starts with.
    """
    rows = []
    for cohort in COHORTS:
        for number in range(1, cohort.n_patients + 1):
            patient = f"{cohort.prefix}-{number:03d}"
            chance = _generator(seed, patient)
            n_classes = int(chance.integers(2, min(4, len(cohort.classes)) + 1))
            for label in sorted(chance.choice(cohort.classes, n_classes, replace=False)):
                for frame in range(1, int(chance.integers(1, 4)) + 1):
                    image_id = f"{patient}_{label.split()[1]}_{frame}"
                    rows.append(
                        {
                            "image_id": image_id,
                            "path": f"{folder}/{cohort.name}/{image_id}.png",
                            "patient_id": patient,
                            "label": str(label),
                            "cohort": cohort.name,
                            "center": cohort.center,
                            "device": cohort.device,
                            "frame": str(frame),
                        }
                    )
    return rows


def write_images(rows: list[dict[str, str]], root: Path, seed: int = 0) -> Iterator[Path]:
    """Render and write the pictures that are not there yet; yields each path.

    Parameters
    ----------
    rows
        Rows of `phantom_rows`.
    root
        Folder that their paths start from.
    seed
        Seed that the rows were made with.

    Raises
    ------
    StoreWriteError
        The file system refused.
    """
    for row in rows:
        path = root / row["path"]
        if not path.exists():
            picture = io.BytesIO()
            Image.fromarray(render(row, seed)).save(picture, format="PNG")
            replace(path, picture.getvalue())
        yield path


def render(row: Mapping[str, str], seed: int = 0) -> NDArray[np.uint8]:
    """Return the picture of one row of the manifest, shape (224, 288), uint8, grey.

    Parameters
    ----------
    row
        Row of `phantom_rows`.
    seed
        Seed that the rows were made with.
    """
    cohort = next(cohort for cohort in COHORTS if cohort.name == row["cohort"])
    body = _generator(seed, row["patient_id"], "body")
    anatomy = _Anatomy(
        size=float(body.normal(1.0, 0.10)),
        stretch=float(body.normal(1.0, 0.06)),
        tissue=float(body.normal(0.30, 0.05)),
        bone=float(body.normal(1.0, 0.12)),
        fluid=float(abs(body.normal(0.015, 0.008))),
        clarity=float(np.clip(body.normal(0.80, 0.15), 0.3, 1.1)),
    )
    chance = _generator(seed, row["image_id"], "frame")
    scanner = cohort.scanner
    depth = np.linspace(0.0, 1.0, _DEPTHS)[:, None]
    angle = np.linspace(-scanner.half_angle, scanner.half_angle, _BEAMS)[None, :]
    radius = scanner.near + (1 - scanner.near) * depth
    x, y = radius * np.sin(angle), radius * np.cos(angle)
    echo, bone = _scene(row["label"], x, y, anatomy, chance)
    amplitude = echo * _speckle(scanner, chance) * np.exp(-scanner.attenuation * depth)
    amplitude *= _shadows(bone, chance) * float(chance.normal(1.0, 0.1))
    # An amplitude of 0.7 is white, the floor of 1e-6 keeps the logarithm finite.
    decibel = 20 * np.log10(np.maximum(amplitude, 1e-6) / 0.7) + scanner.dynamic_range
    grey = np.clip(decibel / scanner.dynamic_range, 0.0, 1.0) * 255
    return _scan_convert(grey, scanner)


def _generator(seed: int, *names: str) -> np.random.Generator:
    # `hash` of a text differs between processes, its CRC does not.
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """Anatomy of one patient, the same in every frame: factors of sizes, and echo amplitudes."""

    size: float
    stretch: float
    tissue: float
    bone: float
    fluid: float
    clarity: float


def _scene(
    label: str, x: Floats, y: Floats, anatomy: _Anatomy, chance: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return echo amplitude and strength of bone, shape (256, 160): depths by beams.

    `x` and `y` are the grid's coordinates, across and along the fan, as shares of the depth.
    """
    turn = chance.normal(0.0, 0.45)
    shift_x, shift_y = chance.normal(0.0, 0.05), 0.62 + chance.normal(0.0, 0.05)
    scale = 0.26 * anatomy.size * chance.normal(1.0, 0.05)
    u, v = (x - shift_x) / scale, (y - shift_y) / scale
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    # Uneven tissue: a smooth field of echogenicity, and bright layers near the probe.
    echo = anatomy.tissue * np.exp(gaussian_filter(chance.normal(size=x.shape), (14, 10)) * 12)
    echo = echo * (1 + 1.2 * np.exp(-(((y - 0.27) / 0.02) ** 2)))
    organs, bone = echo.copy(), np.zeros_like(echo)
    _SCENES[label](u / anatomy.stretch, v, anatomy, organs, bone)
    # Few patients are easy to image: contrast fades with the wall in front, and frame by frame.
    clarity = anatomy.clarity * float(chance.uniform(0.5, 1.0))
    return echo * (organs / echo) ** clarity, bone * clarity


def _disc(u: Floats, v: Floats, cu: float, cv: float, ru: float, rv: float) -> Floats:
    """Return 1 inside an ellipse, 0 outside, with a soft edge."""
    distance = np.sqrt(((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip((distance - 1) * 40, -50, 50))))


def _paint(echo: Floats, where: Floats, value: float) -> None:
    echo *= 1 - where
    echo += where * value


def _ring(u: Floats, v: Floats, ru: float, rv: float, width: float) -> Floats:
    return np.asarray(_disc(u, v, 0, 0, ru, rv) * (1 - _disc(u, v, 0, 0, ru - width, rv - width)))


def _brain(u: Floats, v: Floats, a: _Anatomy, echo: Floats, bone: Floats) -> None:
    _paint(echo, _disc(u, v, 0, 0, 1.25, 0.95), 0.5 * a.tissue)
    skull = _ring(u, v, 1.30, 1.0, 0.10)
    _paint(echo, skull, 2.6 * a.bone)
    _paint(echo, _disc(u, v, 0, 0, 1.10, 0.025), 1.2)  # midline
    _paint(echo, _disc(u, v, -0.05, 0.16, 0.22, 0.13), 0.18 * a.tissue)  # thalami
    _paint(echo, _disc(u, v, -0.05, -0.16, 0.22, 0.13), 0.18 * a.tissue)
    _paint(echo, _disc(u, v, 0.62, 0.30, 0.26, 0.08), a.fluid)  # posterior horn
    bone += 0.25 * skull


def _abdomen(u: Floats, v: Floats, a: _Anatomy, echo: Floats, bone: Floats) -> None:
    _paint(echo, _disc(u, v, 0, 0, 1.08, 1.02), 0.9 * a.tissue)
    _paint(echo, _ring(u, v, 1.10, 1.04, 0.05), 1.1)
    _paint(echo, _disc(u, v, 0.50, 0.10, 0.24, 0.19), a.fluid)  # stomach
    _paint(echo, _disc(u, v, -0.15, -0.15, 0.34, 0.06), a.fluid)  # umbilical vein
    spine = _disc(u, v, -0.80, 0.12, 0.10, 0.14)
    _paint(echo, spine, 2.2 * a.bone)
    bone += spine


def _thorax(u: Floats, v: Floats, a: _Anatomy, echo: Floats, bone: Floats) -> None:
    _paint(echo, _disc(u, v, 0, 0, 1.00, 0.98), 1.1 * a.tissue)
    _paint(echo, _disc(u, v, 0.22, -0.12, 0.50, 0.42), 0.8 * a.tissue)
    for cu, cv in ((0.05, -0.25), (0.40, -0.28), (0.05, 0.05), (0.40, 0.05)):  # four chambers
        _paint(echo, _disc(u, v, cu, cv, 0.14, 0.12), a.fluid)
    for angle in np.linspace(0.4, 2 * np.pi, 7, endpoint=False):  # ribs
        rib = _disc(u, v, 0.98 * np.cos(angle), 0.96 * np.sin(angle), 0.13, 0.06)
        _paint(echo, rib, 2.0 * a.bone)
        bone += 0.5 * rib


def _femur(u: Floats, v: Floats, a: _Anatomy, echo: Floats, bone: Floats) -> None:
    _paint(echo, _disc(u, v, 0, 0.05, 1.45, 0.55), 0.7 * a.tissue)
    shaft = _disc(u, v - 0.14 * u**2, 0, 0, 1.0, 0.10)
    _paint(echo, shaft, 2.8 * a.bone)
    for end in (-0.98, 0.98):
        _paint(echo, _disc(u, v, end, 0.10, 0.16, 0.15), 1.6 * a.bone)
    bone += 1.2 * shaft


def _cervix(u: Floats, v: Floats, a: _Anatomy, echo: Floats, bone: Floats) -> None:
    del bone
    _paint(echo, _disc(u, v, -0.75, -0.75, 0.80, 0.40), a.fluid)  # bladder
    _paint(echo, _disc(u, v, 0.15, 0.20, 1.25, 0.45), 0.75 * a.tissue)
    _paint(echo, _disc(u, v, 0.15, 0.20, 1.10, 0.035), 0.25 * a.tissue)  # canal
    for side in (0.11, -0.11):
        _paint(echo, _disc(u, v, 0.15, 0.20 + side, 1.10, 0.03), 1.0)


_SCENES: Final[Mapping[str, Callable[[Floats, Floats, _Anatomy, Floats, Floats], None]]] = {
    "Fetal brain": _brain,
    "Fetal abdomen": _abdomen,
    "Fetal thorax": _thorax,
    "Fetal femur": _femur,
    "Maternal cervix": _cervix,
}


def _speckle(scanner: Scanner, chance: np.random.Generator) -> Floats:
    """Return the amplitude of fully developed speckle, shape (256, 160), mean 1."""
    noise = chance.normal(size=(2, _DEPTHS, _BEAMS))
    real, imaginary = (gaussian_filter(part, (scanner.axial, scanner.lateral)) for part in noise)
    amplitude = np.hypot(real, imaginary)  # of a complex Gaussian: Rayleigh-distributed
    return np.asarray(amplitude / amplitude.mean())


def _shadows(bone: Floats, chance: np.random.Generator) -> Floats:
    """Return what is left of the amplitude behind bone, and behind one or two gas bubbles."""
    # Bone takes amplitude away from everything deeper on the same beam: a sum along the depth.
    passed = np.exp(-np.cumsum(bone, axis=0) / 6.0)
    shadow = _SHADE + (1 - _SHADE) * passed
    beams = np.arange(bone.shape[1])
    for _ in range(int(chance.integers(0, 4))):
        centre, width = chance.uniform(0, bone.shape[1]), chance.uniform(3, 14)
        shadow = shadow * (1 - 0.7 * np.exp(-(((beams - centre) / width) ** 2)))
    return np.asarray(shadow)


def _scan_convert(grey: Floats, scanner: Scanner) -> NDArray[np.uint8]:
    """Return the fan in pixels, black around it."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    top = scanner.near * np.cos(scanner.half_angle)
    scale = (1.0 - top) / (HEIGHT - 8)
    y, x = top + (rows - 4) * scale, (columns - WIDTH / 2) * scale
    # For each pixel its place on the grid of depths and beams; what lies between is interpolated.
    radius, angle = np.hypot(x, y), np.arctan2(x, y)
    depth = (radius - scanner.near) / (1 - scanner.near) * (_DEPTHS - 1)
    beam = (angle / scanner.half_angle + 1) / 2 * (_BEAMS - 1)
    inside = (depth >= 0) & (depth <= _DEPTHS - 1) & (beam >= 0) & (beam <= _BEAMS - 1)
    pixels = map_coordinates(grey, [depth, beam], order=1, mode="constant")
    return np.where(inside, np.rint(pixels), 0).astype(np.uint8)
