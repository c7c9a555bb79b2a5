"""What is done to answer a question: a probe, a training, prompts, or a learning curve.

Each method is a frozen value that can be written into a run's record and read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Final, Literal, Self

from embedcache.files.shapes import fits
from embedcache.runs import shapes

Rule = Literal["tie", "one-se"]
ExternalBy = Literal["refit", "folds"]
# Names that a command line offers before anything that fits is imported.
PROBE_NAMES: Final = ("logistic", "knn", "prototype", "ridge", "lda", "svm", "mlp")
PROTOCOL_NAMES: Final = ("default", "dinov2", "clip", "fetalclip")
# Those that choose on images which the seed draws, so that it decides answers on any folds.
DRAWING_PROTOCOLS: Final = ("dinov2", "clip")


@dataclass(frozen=True, slots=True)
class Method:
    """Base of the methods; `tag` names the kind of method in a record."""

    tag: ClassVar[str] = ""

    def document(self) -> dict[str, Any]:
        """Return the method as JSON can hold it."""
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return {"tag": self.tag, **plain}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the method in a document; a key that it lacks has its default."""
        names = [field.name for field in fields(cls)]
        values = {name: document[name] for name in names if name in document}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def external_by(self) -> ExternalBy | None:
        """Predictor of external cohorts; None where nothing was trained."""
        return None

    @property
    def weighs_classes_alike(self) -> bool:
        """Whether each class weighs the same in training, however many images it has."""
        return False

    @property
    def label(self) -> str:
        """The method in a few words: what departs from the usual, beside the encoder's name."""
        return self.tag


@dataclass(frozen=True, slots=True)
class ProbeMethod(Method):
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

    tag: ClassVar[str] = "probe"

    probe: str = "logistic"
    protocol: str = "default"
    rule: Rule = "tie"
    external_by: ExternalBy = "refit"
    grid: tuple[float, ...] | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """Name of the probe, and each setting that is not the usual one but the seed."""
        usual = ProbeMethod(probe=self.probe)
        settings = (
            ("{}", self.protocol, usual.protocol),
            ("{}", self.rule, usual.rule),
            ("external by {}", self.external_by, usual.external_by),
            ("grid {}", self.grid, usual.grid),
        )
        departures = [text.format(value) for text, value, default in settings if value != default]
        return ", ".join([self.probe, *departures])


@dataclass(frozen=True, slots=True)
class FinetuneMethod(Method):
    """A training that moves the encoder.

    Parameters
    ----------
    regime
        What is trained: 'finetune', 'lora', 'head-only', 'lp-ft' or 'partial:N'.
    recipe
        Every number of the training, by key; see docs/finetune.md.
    """

    tag: ClassVar[str] = "finetune"

    regime: str
    recipe: Mapping[str, Any]

    @property
    def external_by(self) -> ExternalBy:
        """The mean of the folds' models predicts external cohorts."""
        return "folds"

    @property
    def weighs_classes_alike(self) -> bool:
        """Whether the loss of each class has the same weight."""
        return self.recipe.get("class_weights") == "balanced"

    @property
    def label(self) -> str:
        """Name of the regime."""
        return self.regime


@dataclass(frozen=True, slots=True)
class ZeroShotMethod(Method):
    """Classes told by their text prompts; nothing is trained.

    Parameters
    ----------
    prompts
        One entry a class: name, labels it stands for, and prompts.
    logit_scale
        Factor of the cosines in the softmax.
    """

    tag: ClassVar[str] = "zeroshot"

    prompts: tuple[Mapping[str, Any], ...]
    logit_scale: float


@dataclass(frozen=True, slots=True)
class CurveMethod(Method):
    """Probes of more and more training patients.

    Parameters
    ----------
    sizes
        Numbers of training patients; None for 1, 2, 4, ...
    n_draws
        Number of orders in which patients are taken.
    """

    tag: ClassVar[str] = "curve"

    sizes: tuple[int, ...] | None = None
    n_draws: int = 10


@dataclass(frozen=True, slots=True)
class UnknownMethod(Method):
    """A method of another release, kept as it was written.

    Parameters
    ----------
    content
        The method's document.
    """

    tag: ClassVar[str] = "unknown"

    content: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the document as it was read."""
        return dict(self.content)


_METHODS: Final[Mapping[str, type[Method]]] = {
    method.tag: method for method in (ProbeMethod, FinetuneMethod, ZeroShotMethod, CurveMethod)
}


def method_from_document(document: Mapping[str, Any]) -> Method:
    """Return the method that a document describes; one of another release as it stands."""
    method = _METHODS.get(str(document.get("tag")))
    if method is None:
        return UnknownMethod(document)
    shape = shapes.METHODS[method.tag]
    # A later release may have dropped a setting that is needed here, or added one that decides a
    # number: kept, then, not guessed.
    is_known = _required(method) <= document.keys() <= shape.keys() | {"tag"}
    is_known = is_known and fits(document, shape)
    return method.from_document(document) if is_known else UnknownMethod(document)


def _required(method: type[Method]) -> set[str]:
    return {field.name for field in fields(method) if field.default is MISSING}
