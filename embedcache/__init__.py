"""An embedding-cache feature store with patient-level probes for foundation models in ultrasound.

>>> import embedcache
>>> project = embedcache.open("data_manifest.csv")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.data.embeddings import LabelledEmbeddings as LabelledEmbeddings
    from embedcache.data.folds import FoldSize as FoldSize
    from embedcache.data.folds import FoldTable as FoldTable
    from embedcache.data.predictions import LabelSets as LabelSets
    from embedcache.data.predictions import Measurements as Measurements
    from embedcache.data.predictions import Predictions as Predictions
    from embedcache.encoders.registry import load_encoder as load_encoder
    from embedcache.encoders.spec import Encoder as Encoder
    from embedcache.encoders.spec import EncoderSpec as EncoderSpec
    from embedcache.errors import EmbedcacheError as EmbedcacheError
    from embedcache.extract.report import PassReport as PassReport
    from embedcache.project import Project as Project
    from embedcache.project import open_project as open  # noqa: A004 - embedcache.open
    from embedcache.protocol.estimators import LinearProbe as LinearProbe
    from embedcache.protocol.estimators import LinearProbeCV as LinearProbeCV
    from embedcache.runs.outcome import RunOutcome as RunOutcome
    from embedcache.runs.outcome import RunOutcomes as RunOutcomes
    from embedcache.runs.record import RunRecord as RunRecord
    from embedcache.scoring.estimates import Estimate as Estimate
    from embedcache.verbs.audit_report import AuditReport as AuditReport
    from embedcache.verbs.audited import AuditedRuns as AuditedRuns
    from embedcache.verbs.compare_report import CompareReport as CompareReport
    from embedcache.verbs.extract import Plan as Plan
    from embedcache.verbs.extract import Plans as Plans
    from embedcache.verbs.finetune_options import Callbacks as Callbacks
    from embedcache.verbs.gc import GcReport as GcReport
    from embedcache.verbs.manifest import CheckReport as CheckReport
    from embedcache.verbs.probe import ProbeReport as ProbeReport
    from embedcache.verbs.repeats import RepeatedScore as RepeatedScore
    from embedcache.verbs.status import Status as Status
    from embedcache.verbs.verify import VerifyReport as VerifyReport

__version__ = "0.1.0"
__all__ = [
    "AuditReport",
    "AuditedRuns",
    "Callbacks",
    "CheckReport",
    "CompareReport",
    "EmbedcacheError",
    "Encoder",
    "EncoderSpec",
    "Estimate",
    "FoldSize",
    "FoldTable",
    "GcReport",
    "LabelSets",
    "LabelledEmbeddings",
    "LinearProbe",
    "LinearProbeCV",
    "Measurements",
    "PassReport",
    "Plan",
    "Plans",
    "Predictions",
    "ProbeReport",
    "Project",
    "RepeatedScore",
    "RunOutcome",
    "RunOutcomes",
    "RunRecord",
    "Status",
    "VerifyReport",
    "__version__",
    "load_encoder",
    "open",
]

_HOMES = {
    "AuditReport": "embedcache.verbs.audit_report",
    "AuditedRuns": "embedcache.verbs.audited",
    "Callbacks": "embedcache.verbs.finetune_options",
    "CheckReport": "embedcache.verbs.manifest",
    "CompareReport": "embedcache.verbs.compare_report",
    "EmbedcacheError": "embedcache.errors",
    "Encoder": "embedcache.encoders.spec",
    "EncoderSpec": "embedcache.encoders.spec",
    "Estimate": "embedcache.scoring.estimates",
    "FoldSize": "embedcache.data.folds",
    "FoldTable": "embedcache.data.folds",
    "GcReport": "embedcache.verbs.gc",
    "LabelSets": "embedcache.data.predictions",
    "LabelledEmbeddings": "embedcache.data.embeddings",
    "LinearProbe": "embedcache.protocol.estimators",
    "LinearProbeCV": "embedcache.protocol.estimators",
    "Measurements": "embedcache.data.predictions",
    "PassReport": "embedcache.extract.report",
    "Plan": "embedcache.verbs.extract",
    "Plans": "embedcache.verbs.extract",
    "Predictions": "embedcache.data.predictions",
    "ProbeReport": "embedcache.verbs.probe",
    "Project": "embedcache.project",
    "RepeatedScore": "embedcache.verbs.repeats",
    "RunOutcome": "embedcache.runs.outcome",
    "RunOutcomes": "embedcache.runs.outcome",
    "RunRecord": "embedcache.runs.record",
    "Status": "embedcache.verbs.status",
    "VerifyReport": "embedcache.verbs.verify",
    "load_encoder": "embedcache.encoders.registry",
    "open": "embedcache.project:open_project",
}


def __getattr__(name: str) -> Any:
    # Loaded at first use, so that `import embedcache` costs nothing.
    if name not in _HOMES:
        raise AttributeError(f"module 'embedcache' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
