"""A project that holds a run of every kind and a comparison, on two small cohorts: for verbs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edits import add_column
from made_texts import PROMPTS, let_pixels_read

import embedcache
from embedcache.testing import write_cohort

TINIEST = Path(__file__).parent / "golden" / "tiniest_encoder.py"
FEW = {"folds": 3, "n_resamples": 100}
TRAINING = {
    "changes": {"epochs": 1, "batch_size": 16},
    "encoder_file": TINIEST,
    "workers": 0,
    **FEW,
}


def write_images(folder: Path) -> None:
    """Write two cohorts whose images have age, findings, part of an official split, centre."""
    write_cohort(folder, n_patients=9, n_images=2, cohorts=("home", "abroad"), size=8)
    add_column(
        folder, "age", lambda lines: [10 + 3 * ("brain" in x) + n % 2 for n, x in enumerate(lines)]
    )
    add_column(folder, "findings", lambda lines: ["a|b" if "brain" in x else "b" for x in lines])
    names = (folder / "data_manifest.csv").read_text().splitlines()[0].split(",")
    patient = names.index("patient_id")
    add_column(
        folder,
        "split",
        lambda lines: ["test" if x.split(",")[patient][-1] in "36" else "train" for x in lines],
    )
    add_column(
        folder,
        "center",
        lambda lines: [f"site {int(x.split(',')[patient][-1]) % 3}" for x in lines],
    )


# What each kind of run is asked for, by name. Asked again, each is found again.
ASKED: dict[str, Callable] = {
    "probe": lambda project: project.probe("pixels", controls=True, **FEW),
    "knn": lambda project: project.probe("pixels", probe="knn", **FEW),
    "official split": lambda project: project.probe("pixels", protocol="fetalclip", **FEW),
    "folds by a column": lambda project: project.probe(
        "pixels", folds_by="center", n_resamples=100
    ),
    "external by folds": lambda project: project.probe("pixels", external_by="folds", **FEW),
    "numbers": lambda project: project.probe("pixels", task="regression", label="age", **FEW),
    "labels": lambda project: project.probe("pixels", task="multilabel", label="findings", **FEW),
    "curve": lambda project: project.learning_curves("pixels", sizes=(2, 4), n_draws=2, folds=3),
    "zeroshot": lambda project: project.zeroshot(
        "pixels",
        prompts=str(project.workspace.data_root / "prompts.yaml"),
        n_resamples=FEW["n_resamples"],
    ),
    "training": lambda project: project.finetune(
        "tiniest-vit", regime="head-only", save=True, **TRAINING
    ),
}


def make_project(folder: Path, patch, *names: str):
    """Make a project with the runs of some of `ASKED`, and compare what can be compared.

    Parameters
    ----------
    folder
        Folder of the manifest.
    patch
        Monkeypatch that gives 'pixels' its text half.
    names
        Keys of `ASKED`; all of them where none is named.

    Returns
    -------
    The project, and the outcomes by name.
    """
    write_images(folder)
    (folder / "prompts.yaml").write_text(PROMPTS)
    project = embedcache.open(folder)
    project.extract("pixels")
    let_pixels_read(project, patch)
    outcomes = {name: ASKED[name](project) for name in names or ASKED}
    if outcomes.keys() - {"curve"}:  # a curve alone has nothing to compare
        project.compare(by="center", margin=0.1, n_resamples=FEW["n_resamples"])
    return project, outcomes
