from __future__ import annotations

import json

import numpy as np
import pytest
from made_texts import PROMPTS, let_pixels_read

from embedcache.datasets.prompts import prompts_text, read_prompts
from embedcache.encoders import registry
from embedcache.errors import EncoderError, ManifestError, RunError
from embedcache.probes.zero_shot import class_embeddings, zero_shot


@pytest.fixture
def asked(project, tmp_path, monkeypatch):
    """A cohort in 'pixels', whose text half knows the mean picture of each class."""
    (tmp_path / "mine.yaml").write_text(PROMPTS)
    project.extract("pixels")
    project.texts = let_pixels_read(project, monkeypatch)
    return project


def test_the_shipped_prompts_are_five_a_class_and_stand_for_the_published_labels():
    planes, brain = read_prompts("fetal-planes"), read_prompts("brain-planes")
    assert [one.name for one in planes] == [
        "abdomen", "brain", "femur", "heart", "kidney", "lips_nose", "profile_patient", "spine",
        "cervix",
    ]  # fmt: skip
    assert [len(one.prompts) for one in (*planes, *brain)] == [5] * 12
    assert len({prompt for one in (*planes, *brain) for prompt in one.prompts}) == 60
    spain = {"Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix"}
    assert {one.label_in(spain) for one in planes} >= spain
    assert brain[0].label_in({"Trans-thalamic"}) == "Trans-thalamic"
    assert read_prompts("template")[0].prompts[0].startswith("An ultrasound image of what it shows")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: {a: {prompts: [x]}}", "expected 'classes' with at least two"),
        ("- a\n- b", "expected 'classes' with at least two"),
        ("classes: {a: {prompts: []}, b: {prompts: [y]}}", "class 'a' needs a list of prompts"),
        ("classes: {a: x, b: {prompts: [y]}}", "class 'a' needs a list of prompts"),
        ("template: no\nclasses: {a: {prompts: [x]}, b: {prompts: [y]}}", "has no {} for"),
        (
            "classes: {a: {labels: [q], prompts: [x]}, b: {labels: [q], prompts: [y]}}",
            "label 'q' belongs to two classes",
        ),
        ("classes: {a: [", "while parsing"),
    ],
)
def test_a_wrong_prompt_file_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(RunError, match=message):
        read_prompts(str(tmp_path / "p.yaml"))


def test_a_missing_prompt_file_names_the_shipped_ones():
    with pytest.raises(RunError, match="nowhere.yaml: .*one of fetal-planes, brain-planes"):
        prompts_text("nowhere.yaml")


def test_prompts_are_averaged_as_directions_and_images_are_compared_by_cosine():
    chance = np.random.default_rng(0)
    texts, images = chance.normal(size=(3, 5)), chance.normal(size=(4, 5)).astype(np.float32)
    texts = (texts * [[1.0], [100.0], [3.0]]).astype(np.float32)
    first = texts[0] / np.linalg.norm(texts[0]) + texts[1] / np.linalg.norm(texts[1])
    expected = np.stack([first / np.linalg.norm(first), texts[2] / np.linalg.norm(texts[2])])
    classes = class_embeddings(texts, [2, 1])
    assert np.allclose(classes, expected)
    logits = 100 * (images / np.linalg.norm(images, axis=1, keepdims=True)) @ expected.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(zero_shot(images, classes), odds / odds.sum(axis=1, keepdims=True))
    assert np.allclose(zero_shot(1000 * images, classes), zero_shot(images, classes))


def test_cached_images_are_classified_by_prompts_and_stored_like_any_run(asked, tmp_path):
    notes = []
    (outcome,) = asked.zeroshot(
        "pixels", prompts=str(tmp_path / "mine.yaml"), on_message=notes.append
    )
    assert asked.texts.asked == [f"seen: {letter}" for letter in "abcdef"]
    assert [note.partition(" images of ")[2] for note in notes] == [
        "'home' left out: the prompts have no class for femur"
    ]
    rows = asked.sql("SELECT * FROM predictions ORDER BY image_id").to_pylist()
    labelled = asked.sql("SELECT count(*) AS n FROM images WHERE label <> 'femur'")["n"][0].as_py()
    assert len(rows) == labelled
    assert {row["label"] for row in rows} == {"abdomen", "brain"}
    assert {key for key, _ in rows[0]["p"]} == {"abdomen", "brain", "spine"}
    assert {row["role"] for row in rows} == {"external"}
    assert all(row["fold"] is None for row in rows)
    assert np.mean([row["correct"] for row in rows]) > 0.7
    scores = {
        (one.cohort, one.scoring): one.value
        for one in outcome.estimates
        if (one.metric, one.level) == ("macro_f1", "image")
    }
    assert set(scores) == {(c, s) for c in ("home", "abroad") for s in ("all", "masked")}
    assert outcome.record.kind == "zeroshot"
    assert outcome.record.method.prompts[0]["prompts"] == ["seen: a", "seen: b"]


def test_the_same_question_finds_its_run_and_reads_no_text(asked, tmp_path):
    ask = {"prompts": str(tmp_path / "mine.yaml"), "cohorts": ("home",)}
    (first,) = asked.zeroshot("pixels", **ask)
    asked.texts.asked.clear()
    (second,) = asked.zeroshot("pixels", **ask)
    assert second.was_cached
    assert second.estimates == first.estimates
    assert asked.texts.asked == []
    (tmp_path / "mine.yaml").write_text(PROMPTS.replace("[c]", "[c, g]"))
    (third,) = asked.zeroshot("pixels", **ask)
    assert third.run_id != first.run_id


def test_questions_without_an_answer_say_why(asked, project, tmp_path, monkeypatch):
    mine = str(tmp_path / "mine.yaml")
    with pytest.raises(
        ManifestError, match="no cohort 'mars' in the manifest; it has abroad, home"
    ):
        project.zeroshot("pixels", prompts=mine, cohorts=("mars",))
    with pytest.raises(RunError, match="no image has a 'label' that brain-planes knows"):
        project.zeroshot("pixels", prompts="brain-planes")
    with pytest.raises(RunError, match="holds no embeddings of a model that reads as well"):
        project.zeroshot("all", prompts=mine)
    monkeypatch.undo()
    with pytest.raises(EncoderError, match="'pixels' has no text half; zero-shot needs fetalclip"):
        project.zeroshot("pixels", prompts=mine)


def test_the_command_prints_scores_and_a_prompt_file_to_start_from(asked, command):
    result = command("zeroshot", "-m", "pixels", "--prompts", "mine.yaml")
    assert result.code == 0, result.err
    assert result.out.startswith("macro F1 [95 % interval over patients]\n")
    assert "note: " in result.err
    assert result.out.splitlines()[-1] == "audit of the split: clean"
    result = command("zeroshot", "-m", "pixels", "--prompts", "mine.yaml", "--json")
    assert json.loads(result.out)[0]["run"]["kind"] == "zeroshot"
    shown = command("zeroshot", "-m", "pixels", "--prompts", "template", "--show-prompts")
    assert shown.out == prompts_text("template")


@pytest.mark.slow
def test_a_model_with_two_halves_answers_from_one_set_of_weights(project, monkeypatch):
    model = "random:open_clip:ViT-S-32-alt"
    project.extract(model)
    (outcome,) = project.zeroshot(model)
    assert len(outcome.estimates) > 0
    rows = project.sql("SELECT predicted FROM predictions").to_pydict()["predicted"]
    assert len(rows) == len(project.images())


def test_a_text_half_that_fails_is_an_error_of_one_line(asked, tmp_path, monkeypatch):
    class Broken:
        def encode(self, _):
            raise MemoryError

    monkeypatch.setattr(registry, "load_text", lambda *_, **__: Broken())
    with pytest.raises(EncoderError, match=r"the text half of 'pixels' failed: MemoryError\(\)"):
        asked.zeroshot("pixels", prompts=tmp_path / "mine.yaml")


def test_images_that_count_twice_are_told_beside_the_score(asked, tmp_path):
    images = asked.images().filter(asked.images()["label"].to_numpy() == "brain").to_pylist()
    (tmp_path / images[-1]["path"]).write_bytes((tmp_path / images[0]["path"]).read_bytes())
    asked.extract("pixels")
    outcomes = asked.zeroshot("pixels", prompts=str(tmp_path / "mine.yaml"))
    assert [finding.kind for finding in outcomes.findings] == ["bytes-under-two-patients"]
    assert not outcomes.leaks
    assert any("count twice" in note for note in outcomes[0].record.notes)
