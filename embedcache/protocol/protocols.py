"""How a probe's setting is chosen and what is fitted with it: our protocol, and others' by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, get_args

import numpy as np

from embedcache.errors import RunError
from embedcache.probes.families import PROBES
from embedcache.probes.logistic import C_GRID
from embedcache.runs.methods import ExternalBy, ProbeMethod, Rule
from embedcache.scoring.estimates import HEADLINES

Choice = Literal["nested", "random-tenth", "halving"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is done with a training cohort.

    Parameters
    ----------
    name
        Name in each run's record; a change of the protocol gives it another name.
    choice
        'nested': on inner folds of patients, by the task's inner score. 'random-tenth': on a tenth
        of the training images, drawn at random, by accuracy. 'halving': on such a tenth too, by a
        search that halves its step around the best.
    standardize
        Whether each feature is divided by its deviation; the mean plays no part in a fit.
    grid
        Values of C for a logistic probe, ascending; None for the probe's own.
    official_split
        Whether images whose manifest column `split` is 'train' train, and those with 'test' are
        the test, predicted by the mean of the folds' probes.
    source
        Publication or page that describes it.
    """

    name: str
    choice: Choice = "nested"
    standardize: bool = True
    grid: tuple[float, ...] | None = None
    official_split: bool = False
    source: str = ""


# CLIP searches lambda = 1 / C from 10^-6 to 10^6, at last in 8 steps a decade.
CLIP_GRID: Final = tuple(float(10.0**e) for e in np.linspace(-6, 6, 97))

PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        "default": Protocol("nested-patient-cv-3", source="docs/protocol.md"),
        "dinov2": Protocol(
            "dinov2-like-1",
            choice="random-tenth",
            standardize=False,
            grid=tuple(float(10.0**e) for e in np.linspace(-6, 5, 45)),
            source="Oquab et al. 2023, arXiv 2304.07193; dinov2/eval/log_regression.py",
        ),
        "clip": Protocol(
            "clip-like-1",
            choice="halving",
            standardize=False,
            grid=CLIP_GRID,
            source="Radford et al. 2021, arXiv 2103.00020, appendix A.3",
        ),
        "fetalclip": Protocol(
            "fetalclip-like-1",
            grid=C_GRID,
            official_split=True,
            source="Maani et al. 2025, arXiv 2502.14807: official split, five folds",
        ),
    }
)


def check_method(method: ProbeMethod, task: str = "classification") -> ProbeMethod:
    """Return the method that is in fact used for a task.

    Regression is by ridge regression, so 'logistic', the default of `ProbeMethod`, becomes 'ridge'
    there. With the official split the folds' probes predict every cohort. Values of a grid are put
    in order, the smoothest probe first.

    Parameters
    ----------
    method
        Settings as they were given.
    task
        'classification', 'regression' or 'multilabel'.

    Raises
    ------
    RunError
        A name or value that does not exist, or a combination that the task does not have.
    """
    for word, name, names in (
        ("task", task, HEADLINES),
        ("probe", method.probe, PROBES),
        ("protocol", method.protocol, PROTOCOLS),
        ("rule", method.rule, get_args(Rule)),
        ("external_by", method.external_by, get_args(ExternalBy)),
    ):
        if name not in names:
            raise RunError(f"no {word} '{name}'; it may be {', '.join(names)}")
    if PROTOCOLS[method.protocol].choice != "nested":
        _check_others(method, task)
    if PROTOCOLS[method.protocol].official_split:
        method = replace(method, external_by="folds")
    if task == "regression":
        if method.probe not in {"logistic", "ridge"}:
            raise RunError(f"regression is by ridge; leave out --probe {method.probe}")
        method = replace(method, probe="ridge")
    if method.grid is None:
        return method
    if not method.grid or not all(0 < value < np.inf for value in method.grid):
        raise RunError(
            f"grid {list(method.grid)} of {PROBES[method.probe].setting}; pass one value or more, "
            "each above 0"
        )
    is_largest_first = PROBES[method.probe].setting != "C"
    return replace(method, grid=tuple(sorted(set(method.grid), reverse=is_largest_first)))


def _check_others(method: ProbeMethod, task: str) -> None:
    """Raise `RunError` unless a method is what a protocol without inner folds is about."""
    if task != "classification":
        raise RunError(
            f"protocol '{method.protocol}' is about one class an image, not {task}; pass "
            "--protocol default or fetalclip"
        )
    if method.probe != "logistic":
        raise RunError(
            f"protocol '{method.protocol}' is about logistic regression; leave out --probe "
            f"{method.probe}"
        )
    if method.rule != "tie":
        raise RunError(
            f"protocol '{method.protocol}' has no inner folds; leave out --rule {method.rule}"
        )


def grid_of(method: ProbeMethod) -> tuple[float, ...]:
    """Return the values that a checked method chooses from, the smoothest probe first."""
    by_protocol = PROTOCOLS[method.protocol].grid if method.probe == "logistic" else None
    return method.grid or by_protocol or PROBES[method.probe].grid


def check_folds(n_folds: int, protocol: Protocol, setting: str) -> None:
    """Raise `RunError` unless there are folds to test on and, inside each, to choose on."""
    is_nested = protocol.choice == "nested" and not protocol.official_split
    least = 3 if is_nested else 2
    if n_folds < least:
        raise RunError(
            f"{n_folds} folds leave none to choose {setting} on; pass --folds {least} or more, or "
            "--folds-by a column of as many values"
        )
