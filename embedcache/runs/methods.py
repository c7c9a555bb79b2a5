"""What is done to answer a question: the settings of a probe, a training, a prompt or a curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["tie", "one-se"]
ExternalBy = Literal["refit", "folds"]


@dataclass(frozen=True, slots=True)
class ProbeMethod:
    """A probe, and how its setting is chosen and applied.

    Parameters
    ----------
    probe
        Name of a probe family, such as 'logistic'; see docs/probes.md.
    protocol
        Name of a protocol, such as 'default'; see docs/protocol.md.
    rule
        Rule of a near tie: the smoother probe wins within 0.001 ('tie') or within one standard
        error ('one-se').
    external_by
        Predictor of external cohorts: a 'refit' on all training patients, or the mean of the
        probes of the 'folds'.
    grid
        Values of the setting to choose from, ascending; None for those of the protocol or family.
    seed
        Seed of what a protocol draws at random.
    """

    probe: str = "logistic"
    protocol: str = "default"
    rule: Rule = "tie"
    external_by: ExternalBy = "refit"
    grid: tuple[float, ...] | None = None
    seed: int = 0
