"""The front door: every verb a typed method, one calling convention, results that print."""

from __future__ import annotations

import inspect
import re

import click
import numpy as np
import pytest
from embedcache_cli.main import VERBS, cli

import embedcache
from embedcache.data.tabular import Tabular
from embedcache.encoders.registry import load_encoder
from embedcache.errors import ImageReadError, RunError
from embedcache.project import Project
from embedcache.testing import FakeEncoder

# Verbs that need no project, and verbs whose method has another name.
WITHOUT_PROJECT = {"quickstart", "encoders", "weights", "doctor"}
METHODS = {"manifest": ("check_manifest",), "extract": ("extract", "plan"),
           "probe": ("probe", "learning_curves"), "sql": ("sql", "sql_rows")}  # fmt: skip
# Options that decide where a project is, or how an answer is printed.
ASIDE = {"manifest", "store", "data_root", "as_json", "quiet", "verbose", "progress",
         "pairs", "calibration", "operating_points", "show_prompts", "show_config"}  # fmt: skip
# Options that are a method of their own, keys of a recipe, or how a table is written to a file.
OF_THE_COMMAND = {
    "compare": {"drops"},
    "extract": {"dry_run"},
    "finetune": {"batch_size", "precision"},
    "sql": {"kind", "output", "overwrite"},
}
NAMES = {"on_error": "fail_fast", "epochs": "changes", "output": "file", "grace": "grace_s"}


def public_methods() -> dict[str, inspect.Signature]:
    methods = inspect.getmembers(Project, inspect.isfunction)
    return {name: inspect.signature(one) for name, one in methods if not name.startswith("_")}


def options_of(verb: str) -> set[str]:
    with click.Context(cli) as context:
        return {parameter.name for parameter in cli.get_command(context, verb).params}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in WITHOUT_PROJECT])
def test_every_verb_of_the_command_is_a_method_with_the_same_options(verb):
    methods = METHODS.get(verb, (verb,))
    taken = {name for method in methods for name in public_methods()[method].parameters}
    for option in options_of(verb) - ASIDE - OF_THE_COMMAND.get(verb, set()):
        assert NAMES.get(option, option) in taken, f"{verb} --{option}"


def test_every_option_of_a_method_is_typed_and_named():
    for name, signature in public_methods().items():
        for parameter in list(signature.parameters.values())[1:]:
            place = f"{name}({parameter.name})"
            assert parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}, place
            assert parameter.annotation is not parameter.empty, place
            assert not re.search(r"\bAny\b", str(parameter.annotation)), place
        assert signature.return_annotation is not signature.empty, name
        n_positional = sum(
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            for parameter in signature.parameters.values()
        )
        assert n_positional <= 3, name  # self, what it is about, and a file


def test_the_package_shows_what_it_exports():
    shown = dir(embedcache)
    assert set(embedcache.__all__) <= set(shown)
    assert shown == sorted(shown)
    for name in embedcache.__all__:
        assert getattr(embedcache, name) is not None, name
    with pytest.raises(AttributeError, match="module 'embedcache' has no attribute 'Pipeline'"):
        _ = embedcache.Pipeline


def test_what_methods_return_is_exported():
    exported = set(embedcache.__all__)
    for name, signature in public_methods().items():
        kinds = str(signature.return_annotation).replace("[", " ").replace("]", " ").split()
        for kind in (word.strip(",") for word in kinds):
            is_foreign = kind in {"tuple", "list", "str", "Path", "pa.Table", "QueryRows"}
            assert is_foreign or kind in exported, f"{name} returns {kind}"


def test_a_text_is_one_name_wherever_several_may_be_given(project):
    report = project.extract("pixels")
    assert [tally.encoder for tally in report.tallies] == ["pixels"]
    assert project.models() == project.models("pixels") == project.models(["pixels"]) == ["pixels"]
    assert len(project.plan("pixels")) == 1
    one = project.probe("pixels", external="abroad", n_resamples=100)
    several = project.probe(["pixels"], external=["abroad"], n_resamples=100)
    assert several[0].was_cached
    assert several[0].run_id == one[0].run_id
    assert project.folds(external="abroad")[0] == project.folds(external=("abroad",))[0]
    assert project.compare(one[0].run_id).runs == {"pixels": (one[0].run_id,)}
    assert project.compare([one[0].run_id]).runs == project.compare(models="pixels").runs
    (curve,) = project.learning_curves("pixels", sizes=(2,), n_draws=1)
    assert curve.encoder == "pixels"
    with pytest.raises(RunError, match="no image has a 'label' that brain-planes knows"):
        project.zeroshot("pixels", prompts="brain-planes", cohorts="home")
    with pytest.raises(RunError, match="1 runs and 1 encoders are named; name runs, or encoders"):
        project.compare(one[0].run_id, models="pixels")


def test_a_project_says_where_it_is(project):
    assert repr(project) == (
        f"Project(manifest={project.workspace.manifest}, store={project.workspace.store})"
    )


def test_results_print_as_tables_and_show_as_tables_in_a_notebook(asked):
    probed = asked.probe("pixels", controls=True, n_resamples=100)
    results = {
        "run": (probed[0], ["home", "abroad"]),
        "probe": (probed, ["home", "abroad"]),
        "compare": (asked.compare(n_resamples=100), ["home", "abroad"]),
        "extract": (asked.extract("pixels"), ["pixels"]),
        "plan": (asked.plan("pixels"), ["pixels"]),
        "status": (asked.status(), ["pixels"]),
        "check": (asked.check_manifest(), []),
    }
    for name, (result, texts) in results.items():
        assert isinstance(result, Tabular), name
        table = result.table()
        header, _, *rows = repr(result).splitlines()
        assert header.split() == table.column_names, name
        assert len(rows) == len(table), name
        page = result._repr_html_()
        assert page.count("<tr>") == len(table) + 1, name
        for text in texts:
            assert text in repr(result), name
            assert text in page, name


def test_a_comparison_has_a_row_for_each_cohort_and_run(asked):
    asked.probe("pixels", probe="knn", n_resamples=100)
    report = asked.compare(n_resamples=100)
    rows = report.table().to_pylist()
    assert [(row["cohort"], row["run_id"]) for row in rows] == [
        (cohort.cohort, *report.runs[standing.name])
        for cohort in report.cohorts
        for standing in cohort.comparison.standings
    ]
    assert len(rows) == 4
    for best, second in (rows[:2], rows[2:]):
        assert best["behind_best"] is best["p_corrected"] is None
        assert second["behind_best"] == pytest.approx(best["value"] - second["value"])
        assert 0 < second["p_corrected"] <= 1


def test_a_score_is_had_by_name(asked):
    (outcome,) = asked.probe("pixels")
    inside = outcome.score("macro_f1")
    assert (inside.cohort, inside.role, inside.label) == ("home", "in-domain", "")
    assert outcome.score("macro_f1", cohort="home") == inside
    outside = outcome.score("macro_f1", cohort="abroad", scoring="masked", level="patient")
    assert (outside.cohort, outside.scoring, outside.level) == ("abroad", "masked", "patient")
    assert outcome.score("f1", label="brain").label == "brain"
    assert {score.value for score in outcome.headlines} >= {inside.value}
    stored = asked.sql(
        f"SELECT value FROM metrics WHERE run_id = '{outcome.run_id}' AND metric = 'macro_f1' AND "
        "cohort = 'home' AND level = 'image' AND scoring = 'all'"
    )
    assert stored["value"].to_pylist() == [inside.value]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "f2"}, "has no f2 of cohort 'that trains' .*; it has .*macro_f1"),
        ({"metric": "macro_f1", "cohort": "mars"}, "no macro_f1 of cohort 'mars' .*home, abroad"),
        ({"metric": "f1", "label": "spine"}, "no f1 of cohort 'that trains', label 'spine'"),
        ({"metric": "macro_f1", "scoring": "masked"}, r"\(image, masked\)"),
    ],
)
def test_a_score_that_there_is_not_is_refused_with_what_there_is(asked, arguments, message):
    (outcome,) = asked.probe("pixels")
    with pytest.raises(RunError, match=message) as caught:
        outcome.score(**arguments)
    assert "\n" not in str(caught.value)


def test_an_encoder_embeds_one_picture_by_its_path(project):
    encoder = load_encoder("pixels")
    paths = [project.workspace.data_root / path for path in project.images()["path"].to_pylist()]
    first = encoder.embed(paths[0])
    assert first.shape == (1, encoder.spec.dim)
    assert np.array_equal(encoder.embed(str(paths[0])), first)
    assert np.array_equal(encoder.embed(paths[:3])[:1], first)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    encoder = FakeEncoder()
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageReadError, match=r"b\.png: No such file or directory"):
        encoder.embed(tmp_path / "b.png")
    with pytest.raises(ImageReadError, match=r"a\.png: not an image"):
        encoder.embed([str(tmp_path / "a.png")])
