"""The verbs that make runs and hold them against each other, as methods of the front door."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from embedcache.runs.methods import CurveMethod, ExternalBy, ProbeMethod, Rule
from embedcache.workspace import Workspace

if TYPE_CHECKING:
    from embedcache.data.folds import FoldSize, FoldTable
    from embedcache.data.task_names import TaskName
    from embedcache.extract.report import Progress
    from embedcache.finetune.recipe import RecipeValue
    from embedcache.runs.outcome import RunOutcome
    from embedcache.scoring.choices import Level, Scoring
    from embedcache.verbs.arguments import Names, PathLike
    from embedcache.verbs.audit_report import AuditReport
    from embedcache.verbs.audited import AuditedRuns
    from embedcache.verbs.compare_report import CompareReport
    from embedcache.verbs.finetune_options import Callbacks
    from embedcache.verbs.probe import ProbeReport
    from embedcache.verbs.session import Session

OnMessage = Callable[[str], None]


def quiet(_: object) -> None:
    """Do nothing: nobody listens."""


# Methods import what they need: `import embedcache` loads neither torch nor scikit-learn.
class RunVerbs:
    """The half of `Project` that is about runs.

    Parameters
    ----------
    workspace
        Manifest, data root and store.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def _session(self) -> Session:
        from embedcache.verbs.session import Session

        return Session(self.workspace)

    def models(self, models: Names = "all") -> list[str]:
        """Return the models that the store holds embeddings of, as `probe` takes them."""
        from embedcache.verbs.arguments import name_list

        return self._session().model_names(name_list(models))

    def folds(
        self,
        *,
        label: str = "label",
        task: TaskName = "classification",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike | None = None,
        folds_by: str | None = None,
        seed: int = 0,
    ) -> tuple[FoldTable, list[FoldSize]]:
        """Return the patient folds of a question, and what each fold tests; see `Question`.

        They are assigned and stored at first use.
        """
        from embedcache.verbs.arguments import question_of
        from embedcache.verbs.folds import folds as find_folds

        question = question_of(
            label, train_cohort, external, where, class_map, folds, seed, task, folds_by=folds_by
        )
        return find_folds(self._session(), question)

    def probe(
        self,
        models: Names,
        *,
        label: str = "label",
        task: TaskName = "classification",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike | None = None,
        folds_by: str | None = None,
        seed: int = 0,
        probe: str = "logistic",
        protocol: str = "default",
        rule: Rule = "tie",
        external_by: ExternalBy = "refit",
        grid: Sequence[float] | None = None,
        repeats: int = 1,
        controls: bool = False,
        n_resamples: int = 10_000,
        n_threads: int | None = None,
        on_message: OnMessage = quiet,
        on_run: Callable[[RunOutcome], None] = quiet,
    ) -> ProbeReport:
        """Fit a probe on each model's embeddings, and store predictions and scores.

        Parameters
        ----------
        models
            Names of encoders that the store holds; 'all' for every one.
        label, task, train_cohort, external, where, class_map, folds, folds_by, seed
            What is asked; see `Question`.
        probe, protocol, rule, external_by, grid, repeats, controls, n_resamples, n_threads
            How it is answered, and what else is made of it; see `ProbeMethod` and `ProbeOptions`.
        on_message, on_run
            Called with what a reader of the scores must know, and with each run as it is done.
        """
        from embedcache.verbs import probe as verb
        from embedcache.verbs.arguments import name_list, question_of
        from embedcache.verbs.probe_run import ProbeOptions

        question = question_of(
            label, train_cohort, external, where, class_map, folds, seed, task, folds_by=folds_by
        )
        values = None if grid is None else tuple(grid)
        method = ProbeMethod(probe, protocol, rule, external_by, values, seed)
        options = ProbeOptions(n_resamples, n_threads, controls, repeats)
        names = name_list(models)
        return verb.probe(self._session(), names, question, method, options, on_message, on_run)

    def audit(
        self,
        models: Names = "all",
        *,
        label: str = "label",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike | None = None,
        folds_by: str | None = None,
        seed: int = 0,
        threshold: float | None = None,
        show_patients: bool = False,
        on_message: OnMessage = quiet,
        on_progress: Callable[[Progress], None] = quiet,
    ) -> AuditReport:
        """Look for leaks, repeated images, shortcuts and wrong labels; see docs/audit.md.

        Parameters
        ----------
        models
            Encoders that must agree on near-duplicates; 'all' for two that hold every image.
        label, train_cohort, external, where, class_map, folds, folds_by, seed
            The images, their label and folds; see `Question`.
        threshold, show_patients
            How to look; see `AuditOptions`.
        on_message, on_progress
            Called with what could not be looked at, and with how many pictures are decoded.
        """
        from embedcache.verbs import audit as verb
        from embedcache.verbs.arguments import name_list, question_of
        from embedcache.verbs.audit_report import AuditOptions

        question = question_of(
            label, train_cohort, external, where, class_map, folds, seed, folds_by=folds_by
        )
        options = AuditOptions(threshold, show_patients)
        session, names = self._session(), name_list(models)
        return verb.audit(session, names, question, options, on_message, on_progress)

    def learning_curves(
        self,
        models: Names,
        *,
        sizes: Sequence[int] | None = None,
        n_draws: int = 10,
        label: str = "label",
        task: TaskName = "classification",
        train_cohort: str | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike | None = None,
        folds_by: str | None = None,
        seed: int = 0,
        n_threads: int | None = None,
        on_message: OnMessage = quiet,
        on_run: Callable[[RunOutcome], None] = quiet,
    ) -> AuditedRuns:
        """Score probes of 1, 2, 4, ... training patients, and store the curves.

        Parameters
        ----------
        models, label, task, train_cohort, where, class_map, folds, folds_by, seed, n_threads
            Encoders, question and threads; see `probe`.
        on_message, on_run
            Called with what a reader must know, and with each run as it is done.
        sizes, n_draws
            Numbers of patients, and of orders in which they are taken; see `CurveMethod`.
        """
        from embedcache.verbs.arguments import name_list, question_of
        from embedcache.verbs.learning_curves import CurveOptions, learning_curves

        question = question_of(
            label, train_cohort, None, where, class_map, folds, seed, task, folds_by=folds_by
        )
        method = CurveMethod(None if sizes is None else tuple(sizes), n_draws)
        options, names = CurveOptions(n_threads), name_list(models)
        return learning_curves(
            self._session(), names, question, method, options, on_message=on_message, on_run=on_run
        )

    def finetune(
        self,
        models: Names,
        *,
        regime: str = "finetune",
        recipe: PathLike | None = None,
        changes: Mapping[str, RecipeValue] | None = None,
        label: str = "label",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike | None = None,
        folds_by: str | None = None,
        seed: int = 0,
        repeats: int = 1,
        device: str = "auto",
        n_devices: int = 1,
        save: bool = False,
        weights: PathLike | None = None,
        preprocess: str | None = None,
        encoder_file: PathLike | None = None,
        offline: bool = False,
        workers: int | None = None,
        n_resamples: int = 10_000,
        callbacks: Callbacks | None = None,
    ) -> AuditedRuns:
        """Train encoder and head on each fold, and store predictions and scores as probes do.

        Parameters
        ----------
        models, weights, preprocess, encoder_file, offline, label, train_cohort, external, where,
        class_map, folds, folds_by, seed, regime, recipe, changes, device, n_devices, save, workers,
        n_resamples, repeats, callbacks
            Encoders (see `extract`), what is asked (`Question`), and how (`FinetuneOptions`).
        """
        from embedcache.finetune.recipe import read_recipe
        from embedcache.verbs import arguments as args
        from embedcache.verbs import finetune as verb
        from embedcache.verbs.finetune_options import FinetuneOptions

        keys = read_recipe(args.optional_path(recipe), changes)
        source = args.encoder_options(weights, encoder_file, offline=offline, preprocess=preprocess)
        question = args.question_of(
            label, train_cohort, external, where, class_map, folds, seed, folds_by=folds_by
        )
        options = FinetuneOptions(
            keys, regime, source, device, n_devices, save, workers, n_resamples, repeats
        )
        return verb.finetune(self._session(), args.name_list(models), question, options, callbacks)

    def zeroshot(
        self,
        models: Names,
        *,
        prompts: str = "fetal-planes",
        label: str = "label",
        cohorts: Names | None = None,
        where: str | None = None,
        seed: int = 0,
        n_resamples: int = 10_000,
        weights: PathLike | None = None,
        encoder_file: PathLike | None = None,
        device: str = "auto",
        offline: bool = False,
        on_message: OnMessage = quiet,
        on_run: Callable[[RunOutcome], None] = quiet,
    ) -> AuditedRuns:
        """Classify cached images by text prompts, and store predictions and scores.

        Parameters
        ----------
        models
            Encoders that read as well: fetalclip, or any open_clip:ARCH/TAG; 'all' for every one.
        prompts, label, cohorts, where, seed, n_resamples, device
            What is asked, of which images; see `ZeroShotOptions`.
        weights, encoder_file, offline
            Source of the text half; see `EncoderOptions`.
        on_message, on_run
            Called with what a reader of the scores must know, and with each run as it is done.
        """
        from embedcache.verbs import zeroshot as verb
        from embedcache.verbs.arguments import encoder_options, name_list, optional_names

        encoders = encoder_options(weights, encoder_file, offline=offline)
        options = verb.ZeroShotOptions(
            prompts, label, optional_names(cohorts), where, seed, n_resamples, encoders, device
        )
        return verb.zeroshot(self._session(), name_list(models), options, on_message, on_run)

    def compare(
        self,
        runs: Names | None = None,
        *,
        models: Names | None = None,
        metric: str | None = None,
        level: Level = "image",
        scoring: Scoring = "all",
        by: str | None = None,
        margin: float | None = None,
        n_resamples: int = 10_000,
        seed: int = 0,
    ) -> CompareReport:
        """Hold stored runs against each other, paired by patient; fits nothing.

        Parameters
        ----------
        runs, models, metric, level, scoring, by, margin, n_resamples, seed
            What to compare, and how; see `CompareOptions`.
        """
        from embedcache.verbs.arguments import optional_names
        from embedcache.verbs.compare import compare
        from embedcache.verbs.compare_report import CompareOptions

        names = optional_names(models), optional_names(runs)
        options = CompareOptions(*names, metric, level, scoring, by, margin, n_resamples, seed)
        return compare(self._session(), options)
