"""One patient spelt in two ways, labels that look like none: what the check and a study say."""

from __future__ import annotations

from edits import rewrite_manifest


def respell(project, spellings: dict[str, str]) -> None:
    """Give some lines of the manifest another spelling of what they hold."""

    def edit(lines: list[str]) -> list[str]:
        for old, new in spellings.items():
            number = next(i for i, line in enumerate(lines) if old in line)
            lines[number] = lines[number].replace(old, new)
        return lines

    rewrite_manifest(project, edit)


def test_patients_who_may_be_one_are_named_by_the_check(project):
    respell(
        project,
        {
            ",home-001,": ",home-1,",
            ",home-002,": ",Home_002,",
            ",home-003,": ",home-003\u200b,",
            ",abroad-002,": ",home\uff0d005,",
        },
    )
    report = project.check_manifest()
    trouble, hidden = report.troubles
    assert (trouble.kind, hidden.kind) == ("patient-spelling", "invisible-characters")
    assert r"('home-003\u200b' is one), first 'home-003_abdomen_0'" in hidden.message
    assert (
        r"('home\uff0d005', 'home-005'; 'home-1', 'home-001'; 'Home_002', 'home-002'; and 1 more)"
        in trouble.message
    )
    assert not report.has_leaks


def test_names_that_differ_give_no_note(project):
    project.extract("pixels")
    messages: list[str] = []
    project.probe("pixels", controls=False, n_resamples=100, on_message=messages.append)
    assert messages == []
    assert project.check_manifest().troubles == ()


def test_labels_that_look_like_none_are_classes_and_are_named(project):
    respell(project, {",femur,": ",NaN,", ",abdomen,": ",N/A,"})
    kinds = {t.kind: t for t in project.check_manifest().troubles}
    assert set(kinds) == {"label-looks-missing"}
    assert "2 images have a label that looks like a missing value ('" in (
        kinds["label-looks-missing"].message
    )
    assert not project.check_manifest().has_leaks
    project.extract("pixels")
    messages: list[str] = []
    project.probe("pixels", controls=False, n_resamples=100, on_message=messages.append)
    assert any("which looks like a missing value" in line for line in messages)


def test_classes_of_one_patient_each_are_named(project):
    def edit(lines: list[str]) -> list[str]:
        rows = [line.split(",") for line in lines]
        return [",".join([*row[:2], row[3], *row[3:]]) for row in rows if row[4] == "home"]

    rewrite_manifest(project, edit)
    assert [t.kind for t in project.check_manifest().troubles] == ["one-patient-a-class"]


def test_labels_of_two_cohorts_that_differ_in_spelling_are_named(project):
    def edit(lines: list[str]) -> list[str]:
        return [line.replace(",brain,abroad", ",Brain ,abroad") for line in lines]

    rewrite_manifest(project, edit)
    assert [t.kind for t in project.check_manifest().troubles] == ["label-spelling"]
    project.extract("pixels")
    messages: list[str] = []
    project.probe("pixels", controls=False, n_resamples=100, on_message=messages.append)
    project.learning_curves("pixels", sizes=[4], n_draws=1, on_message=messages.append)
    note = "classes differ in spelling only ('Brain', 'brain'); --class-map makes them one"
    assert messages.count(note) == 2


def test_ids_that_look_alike_and_files_in_another_unicode_form_are_named(project):
    first = project.images()["path"].to_pylist()[0]
    folder = project.workspace.data_root
    decomposed = (folder / first).with_name("zoe\u0308.png")
    (folder / first).rename(decomposed)
    name = project.images()["image_id"].to_pylist()[1]

    def edit(lines: list[str]) -> list[str]:
        cells = lines[0].split(",")
        cells[0], cells[1] = f"{name}\u200b", "images/zo\u00eb.png"
        return [",".join(cells), *lines[1:]]

    rewrite_manifest(project, edit)
    kinds = {trouble.kind: trouble.message for trouble in project.check_manifest().troubles}
    assert set(kinds) == {"missing", "id-spelling", "invisible-characters"}
    assert rf"('{name}\u200b', '{name}')" in kinds["id-spelling"]
    assert r"(the first is there in another Unicode form, 'zoe\u0308.png')" in kinds["missing"]
