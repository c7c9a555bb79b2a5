"""What the documentation says is what the code does: flags, columns, queries, snippets, links."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from urllib.parse import unquote

import click
import numpy as np
import pytest
from conftest import ROOT
from embedcache_cli import main as cli_main
from embedcache_cli.main import VERBS, cli
from made_answers import made_predictions
from made_runs import store_run
from PIL import Image
from test_architecture import FLOORS

import embedcache
from embedcache.audit.finding import AuditFinding
from embedcache.data.manifest import REQUIRED, write_manifest
from embedcache.datasets.phantom import phantom_rows
from embedcache.encoders import registry
from embedcache.encoders.preprocess import Preprocess
from embedcache.extract.report import PassReport
from embedcache.files.backend import on_disk
from embedcache.finetune.recipe import read_recipe
from embedcache.probes.logistic import C_GRID
from embedcache.probes.selection import TIE
from embedcache.project import Project
from embedcache.protocol.protocols import PROTOCOLS
from embedcache.runs.methods import CurveMethod, FinetuneMethod, ProbeMethod, ZeroShotMethod
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.layout import segment_folder
from embedcache.verbs.compare_report import CompareReport
from embedcache.verbs.doctor import DoctorReport
from embedcache.verbs.extract import Plan
from embedcache.verbs.gc import GcReport
from embedcache.verbs.manifest import CheckReport, Trouble
from embedcache.verbs.observations import Observation
from embedcache.verbs.probe_run import ProbeOptions
from embedcache.verbs.quickstart import MODELS
from embedcache.verbs.session import Session
from embedcache.verbs.status import KindStatus, Status
from embedcache.verbs.verify import Finding, VerifyReport
from embedcache.workspace import FORMAT_VERSION

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BUILTIN = dict(registry.BUILTIN)  # before anything is registered for these tests


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [
        "\n".join(line.removeprefix(indent) for line in code.splitlines()) for indent, code in found
    ]


def without_fences(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def sections(text: str) -> dict[str, str]:
    """Return each heading's own text by its anchor, up to the next heading."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {anchor(name): body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table below its head; a cell that is all code without backticks."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [
        [
            [
                re.sub(r"^`([^`]*)`$", r"\1", cell.strip())
                for cell in re.split(r"(?<!\\)\|", line)[1:-1]
            ]
            for line in block.splitlines()[2:]
        ]
        for block in found
    ]


# The command line


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        command = command.get_command(click.Context(command), name)
    return command


def options_of(path: tuple[str, ...]) -> list[click.Option]:
    return [one for one in find(path).params if isinstance(one, click.Option)]


COMMANDS = list(commands())


def test_the_tree_of_commands_is_walked():
    assert {path[0] for path in COMMANDS} == set(VERBS)
    assert ("manifest", "fetal-planes") in COMMANDS
    assert ("weights", "add") in COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_verb_has_a_section_that_names_all_its_options(path):
    parts = sections(page("docs/cli.md"))
    name = anchor(" ".join(path))
    assert name in parts, f"docs/cli.md has no section '{' '.join(path)}'"
    text = parts[name]
    text += "".join(parts[linked] for linked in re.findall(r"\(#([\w-]+-options)\)", text))
    if "Takes the options above" in text:
        text += parts[anchor(path[0])]
    written = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    for option in options_of(path):
        for flag in option.opts:
            assert flag in written, f"docs/cli.md, section '{' '.join(path)}': no {flag}"


def test_no_flag_is_documented_that_is_none():
    options = [option for path in COMMANDS for option in options_of(path)]
    known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "-h", "--version"}
    for file in PAGES:
        text = file.read_text()
        lines = [line for code in fences(text, "sh") for line in code.splitlines()]
        ours = [line for line in lines if line.startswith("embedcache")]
        text = "\n".join([*re.findall(r"`[^`\n]*`", without_fences(text)), *ours])
        outside = {"--check", "--strict", "--images", "--tiny"}  # of ruff, mypy and bench_cuda.py
        written = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text)) - outside
        unknown = {flag for flag in written if flag.replace("_", "-") not in known}
        assert not unknown, f"{file.name}: {unknown}"


def test_defaults_of_the_tables_are_those_of_the_options():
    checked = 0
    for path in COMMANDS:
        parts = sections(page("docs/cli.md"))
        text = parts[anchor(" ".join(path))]
        text += "".join(parts[linked] for linked in re.findall(r"\(#([\w-]+-options)\)", text))
        stated = {
            re.sub(r"[`\\]", "", row[0]): row[1].strip("`") for t in tables(text) for row in t
        }
        for option in options_of(path):
            names = (
                d for flags, d in stated.items() if option.opts[-1] in re.split("[ ,]+", flags)
            )
            shown = next(names, None)
            if shown is None or option.is_flag or not option.show_default:
                continue
            given = option.default
            given = f"{given:g}" if isinstance(given, float) else str(given)
            assert shown == given, f"{' '.join(path)} {option.opts[-1]}: {shown} is not {given}"
            checked += 1
    assert checked > 20


def test_every_environment_variable_is_in_the_table_and_no_other():
    (table,) = tables(sections(page("docs/cli.md"))["environment-variables"])
    stated = {row[i]: row[i + 1] for row in table for i in (0, 2) if row[i]}
    real = {str(option.envvar): option.opts[-1] for path in COMMANDS for option in options_of(path)}
    assert stated == real


def test_exit_codes_are_those_of_the_command():
    (table,) = tables(sections(page("docs/cli.md"))["exit-codes"])
    stated = {int(code): error for code, _, error in table}
    source = Path(cli_main.__file__).read_text()
    interrupted = {int(code) for code in re.findall(r"_interrupted\((\d+)\)", source)}
    raised = {code: kind.__name__ for kind, code in cli_main.EXIT_CODES}
    rest = dict.fromkeys({0, 2, 3, *interrupted}, "")
    assert stated == {**rest, **raised}
    assert len(interrupted) == 2
    words = ("nine", "ten", "eleven")
    assert f"one of {words[len(stated) - 9]} [exit codes]" in page("README.md")
    for file in PAGES:
        for code in re.findall(r"exit code \[?(\d+)", file.read_text(), re.IGNORECASE):
            assert int(code) in stated, f"{file.name}: exit code {code}"


def json_row(name: str) -> str:
    """Return what docs/cli.md says of the JSON document of one verb."""
    (table,) = tables(sections(page("docs/cli.md"))["json"])
    (row,) = [row for row in table if row[0].strip("`").endswith(name)]
    return row[1]


def test_the_json_documents_have_the_fields_that_are_named():
    kinds = {
        "check": CheckReport, "extract": PassReport, "dry-run": Plan, "status": Status,
        "verify": VerifyReport, "gc": GcReport, "compare": CompareReport, "doctor": DoctorReport,
    }  # fmt: skip
    parts = {"check": Trouble, "status": KindStatus, "verify": Finding, "doctor": Observation}
    for name, kind in kinds.items():
        text = re.sub(r"\(.*?\)", "", json_row(name))
        stated = set(re.findall(r"\w+", text.replace("list of", "")))
        assert stated == {field.name for field in fields(kind)}, name
        if name in parts:
            (inside,) = re.findall(r"\((.*?)\)", json_row(name))
            assert re.findall(r"\w+", inside) == [field.name for field in fields(parts[name])]


def test_the_json_documents_of_runs_have_the_fields_that_are_named(likeness):
    report = likeness.probe(MODELS, grid=(0.001, 0.1), n_resamples=200)
    assert set(re.findall(r"`(\w+)`", json_row("--patients"))) == set(report[0].document())
    text = json_row("probe").replace("(as `compare`, or null)", "")
    assert set(re.findall(r"`(\w+)`", text)) == set(report.document())


def test_the_json_document_of_an_audit_has_the_fields_that_are_named(likeness):
    document = likeness.audit(folds=2).document()
    named = set(re.findall(r"`(\w+)`", json_row("audit")))
    assert named == set(document) | set(AuditFinding("kind", "note", "message").document())


def test_commands_in_the_pages_parse():
    parsed = 0
    for file in PAGES:
        for code in fences(file.read_text(), "sh"):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["embedcache"]:
                    parse(words[1:])
                    parsed += 1
    assert parsed >= 15


def parse(words: list[str]) -> None:
    words = words[: next((i for i, word in enumerate(words) if word in "<>|"), len(words))]
    command, context = cli, click.Context(cli, **cli.context_settings)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"no verb '{name}'"
        context = click.Context(command, parent=context, info_name=name)
    with contextlib.suppress(click.exceptions.Exit):  # of an option that prints and stops
        command.parse_args(context, words)


def test_verbs_in_running_text_are_verbs():
    for file in PAGES:
        for verb in re.findall(r"`embedcache ([a-z][a-z-]+)", without_fences(file.read_text())):
            assert verb in VERBS, f"{file.name}: embedcache {verb}"


# The store and SQL: a project like the quickstart's, in a second


@pytest.fixture(scope="module")
def likeness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The quickstart's manifest and encoders' names, over tiny pictures and tiny encoders."""
    root = tmp_path_factory.mktemp("docs")
    rows = phantom_rows()
    write_manifest(root / "data_manifest.csv", rows)
    chance = np.random.default_rng(0)
    patterns = {label: chance.normal(128, 28, (16, 16)) for label in {r["label"] for r in rows}}
    tints = {patient: chance.normal(0, 16) for patient in {r["patient_id"] for r in rows}}
    for row in rows:
        pixels = patterns[row["label"]] + tints[row["patient_id"]] + chance.normal(0, 80, (16, 16))
        path = root / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    coarse = Preprocess(
        height=4, width=4, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,)
    )
    pixels = BUILTIN["pixels"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, MODELS[0], replace(pixels, name=MODELS[0]))
        patch.setitem(
            registry.BUILTIN, MODELS[1], replace(pixels, name=MODELS[1], dim=16, preprocess=coarse)
        )
        project = embedcache.open(root)
        project.extract(MODELS)
        project.probe(
            MODELS,
            grid=(0.001, 0.1),
            n_resamples=200,
        )
        project.compare(n_resamples=200)
        yield project


@dataclass(frozen=True, slots=True)
class Documented:
    """The tables of docs/sql.md: column to type, in order."""

    columns: dict[str, dict[str, str]]


def documented() -> Documented:
    text = page("docs/sql.md")
    part = text.partition("\n## Tables and views\n")[2].partition("\n## Worked queries\n")[0]
    return Documented(
        {name: {row[0]: row[1] for row in tables(body)[0]} for name, body in sections(part).items()}
    )


def test_every_table_and_column_is_documented_with_its_type(likeness):
    stated = documented().columns
    real = likeness.sql("SHOW TABLES")["name"].to_pylist()
    assert set(stated) == {*real, "embeddings"}
    for name, columns in stated.items():
        view = "embeddings_efficientnet_lite0" if name == "embeddings" else name
        table = likeness.sql(f"DESCRIBE {view}")
        types = zip(table["column_name"].to_pylist(), table["column_type"].to_pylist(), strict=True)
        held = {column: re.sub(r"FLOAT\[\d+\]", "FLOAT[dim]", kind) for column, kind in types}
        if name == "images":  # every other column is the manifest's own
            assert list(columns) == [*REQUIRED, "sha256"]
            assert columns.items() <= held.items()
        else:
            assert columns == held, name
            assert list(columns) == list(held), name


def test_names_in_settings_results_and_metrics_are_documented(likeness):
    parts = sections(page("docs/sql.md"))
    for column in ("settings", "results"):
        names = likeness.sql(f"SELECT DISTINCT unnest(json_keys({column})) AS n FROM runs")
        for name in names["n"].to_pylist():
            assert f"`{name}`" in parts["runs"], name
    for metric in likeness.sql("SELECT DISTINCT metric FROM metrics")["metric"].to_pylist():
        assert f"`{metric}`" in parts["metrics"]
        assert f"| `{metric}` |" in page("docs/protocol.md")


QUERIES = fences(page("docs/sql.md"), "sql")


def test_there_are_ten_worked_queries_and_more():
    assert len(QUERIES) >= 10


@pytest.mark.parametrize("query", QUERIES, ids=range(1, len(QUERIES) + 1))
def test_each_worked_query_answers(likeness, query):
    assert len(likeness.sql(query)) >= 1


def test_the_query_of_repeats_keeps_versions_apart(project):
    project.workspace.create_store()
    for seed, version in enumerate(["p-1", "p-1", "p-2"]):
        answers = [made_predictions(2.0, own=seed)]
        versions = {"protocol": version, "scores": "s-1"}
        store_run(project, f"probe-a-{seed}", "a", answers, seed=seed, constants=versions)
    (query,) = [query for query in QUERIES if "AS repeats" in query]
    table = project.sql(query).select(["version", "scores", "repeats"]).to_pylist()
    rows = sorted(tuple(row.values()) for row in table)
    assert rows == [("p-1", "s-1", 2), ("p-2", "s-1", 1)]


def test_python_snippets_run(likeness, monkeypatch, capsys):
    monkeypatch.chdir(Path(likeness.workspace.store).parent)
    Image.new("L", (20, 20)).save("image.png")
    n_run = 0
    for file in PAGES:
        if file.name != "format.md":
            for code in fences(file.read_text(), "python"):
                exec(compile(code, file.name, "exec"), {})
                n_run += 1
    assert n_run >= 3
    out = capsys.readouterr().out
    assert "(230, 256) 36" in out
    assert "south masked" in out
    assert "('efficientnet-lite0', 314)" in out


def test_snippets_of_the_format_read_the_store(likeness, tmp_path):
    folder = Session(likeness.workspace).find_store(MODELS[0]).folder
    store = EmbeddingStore(on_disk(Path(shutil.copytree(folder, tmp_path / "encoder"))))
    keys = store.row_keys()[:-14]  # replaced records that still lie there hold the other rows
    store.rewrite(keys)
    (record,) = store.records
    rows = store.read(keys)
    names = {"path": str(segment_folder(store.folder, record.id)), "folder": str(store.folder)}
    blocks = fences(page("docs/format.md"), "python")
    assert len(blocks) == 3
    for number, code in enumerate(blocks):
        exec(compile(code, "docs/format.md", "exec"), names)
        if number < 2:
            assert len(code.split("\n\n")[1].splitlines()) <= 2
            assert np.array_equal(names.pop("rows"), rows)
    assert list(names["embeddings"]) == keys
    assert np.array_equal(np.stack(list(names["embeddings"].values())), rows)


def test_the_tree_of_the_format_is_the_tree_of_a_store(likeness):
    (tree,) = [code for code in fences(page("docs/format.md"), "text") if "encoders/" in code]
    root = Path(likeness.workspace.store)
    for path in root.iterdir():
        assert path.name in tree, path.name
    for path in (root / "encoders").glob("*/*"):
        assert re.search(rf"^  {path.name}\b", tree, re.MULTILINE), path.name
    for path in (root / "runs").glob("*/*"):
        name = re.sub(r"\.[0-9a-f]{8}\.parquet$", ".CRC.parquet", path.name)
        assert re.search(rf"^runs/RUN_ID/{re.escape(name)} ", tree, re.MULTILINE), path.name
    run_ids = {path.name for path in (root / "runs").iterdir() if path.is_dir()}
    for path in (root / "runs").iterdir():
        assert path.name.removeprefix(".lock-") in run_ids, path.name
    assert re.search(r"^runs/\.lock-RUN_ID ", tree, re.MULTILINE)
    assert f"format version {FORMAT_VERSION}" in page("docs/format.md").splitlines()[0]
    assert f'"version": {FORMAT_VERSION}' in page("docs/format.md")


def test_the_keys_of_a_run_are_those_of_the_format(likeness):
    """Hold the tables of docs/format.md against `run.json`, question and methods."""
    document = likeness.probe(MODELS[0], grid=(0.001, 0.1), n_resamples=200)[0].record.document()
    record, methods = tables(sections(page("docs/format.md"))["runs"])
    stated = [name for row in record for name in re.findall(r"\w+", row[0])]
    assert stated == [*document, "crc32c"]
    (question,) = [row[1] for row in record if row[0] == "question"]
    assert set(re.findall(r"`(\w+)`", question)) == set(document["question"])
    (data,) = [row[1] for row in record if row[0] == "data"]
    assert set(document["data"]) <= set(re.findall(r"`(\w+)`", data))
    kinds = (ProbeMethod, FinetuneMethod, ZeroShotMethod, CurveMethod)
    assert [row[0] for row in methods] == [kind.tag for kind in kinds]
    for (_, settings), kind in zip(methods, kinds, strict=True):
        assert re.findall(r"`(\w+)`", settings) == [field.name for field in fields(kind)]


# Encoders, protocol, rooms


def test_the_table_of_encoders_is_the_registry():
    table = tables(sections(page("docs/encoders.md"))["registered-in-this-version"])[0]
    stated = {row[0]: row for row in table}
    assert list(stated) == list(BUILTIN)
    for name, spec in BUILTIN.items():
        _, _, dim, shape, licence, source = stated[name]
        assert int(dim) == spec.dim, name
        assert re.match(" x ".join(map(str, spec.preprocess.shape)) + r"\b", shape), name
        assert spec.preprocess.resample in shape, name
        if spec.preprocess.fit == "crop":
            assert shape.endswith(f"centre crop {spec.preprocess.crop_pct}"), name
        assert licence == spec.weights.licence, name
        if spec.weights.kind != "none":
            assert spec.weights.location.replace("_", "-") in source.replace("_", "-"), name


def test_the_protocol_has_its_name_and_numbers():
    text = page("docs/protocol.md")
    assert all(f"`{one.name}`" in text for one in PROTOCOLS.values())
    assert f"one of {len(C_GRID)} values, 10^-5, 10^-4.5, ..., 10^0.5" in text
    assert np.allclose(np.log10(C_GRID), np.arange(-5, 0.75, 0.5))
    assert f"within {TIE} of the best" in text
    assert f"{ProbeOptions().n_resamples:,} times" in text


def test_the_rooms_are_those_of_the_architecture_test():
    (drawn,) = fences(page("CONTRIBUTING.md"), "text")
    assert tuple(tuple(line.split(" | ")) for line in drawn.splitlines()) == FLOORS


def test_files_named_in_the_contributors_guide_exist():
    named = re.findall(r"`((?:embedcache|cli|tests|docs|\.ci)/[\w./]+)`", page("CONTRIBUTING.md"))
    assert len(named) > 15
    for name in named:
        if not re.search(r"[A-Z]{2}", name):  # NAME and its like are the reader's
            assert (ROOT / name).exists(), name


# README, links


def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", page("Makefile"), re.MULTILINE))
    first = fences(page("README.md"), "sh")[0]
    assert re.findall(r"^make (\w+)", first, re.MULTILINE) == ["quickstart", "test"]
    for file in PAGES:
        code = "\n".join(
            [*fences(file.read_text(), "sh"), *re.findall("`(make .*?)`", file.read_text())]
        )
        for line in re.findall(r"^make (.*?)(?:\s*#.*)?$", code, re.MULTILINE):
            named = [word for word in shlex.split(line) if "=" not in word]
            assert set(named) <= targets, f"{file.name}: make {line}"


def test_the_readme_shows_what_the_quickstart_prints():
    (shown,) = fences(page("README.md"), "text")
    source = (ROOT / "cli/embedcache_cli/quickstart.py").read_text()
    steps = re.findall(r"^\d\. .*$", shown, re.MULTILINE)
    assert len(steps) == 4
    for step in steps:
        assert step in source, step
    for model in MODELS:
        assert f"\n{model}@" in shown
    rows = phantom_rows()
    north = [row for row in rows if row["cohort"] == "north"]
    patients = {row["patient_id"] for row in north}
    assert f"{len(north)} images of {len(patients)} patients in 'north'" in shown
    assert len(page("README.md").splitlines()) < 150


def test_the_distribution_is_never_called_by_a_name_that_is_another_projects():
    texts = [file.read_text() for file in PAGES]
    for folder in ("embedcache", "cli"):
        texts += [file.read_text() for file in (ROOT / folder).rglob("*.py")]
    for text in texts:
        assert not re.search(r"pip3? install [^\n`]*?(?<![\w./-])embedcache(?!-fm)\b", text)
    assert "embedcache-fm" in page("README.md")


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    text = without_fences(file.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, fragment = unquote(target).partition("#")
        goal = (file.parent / name).resolve() if name else file
        assert goal.exists(), f"{file.name}: {target}"
        assert goal.is_relative_to(ROOT.resolve()), f"{file.name}: {target}"
        if fragment:
            known = map(anchor, re.findall(r"^#+ (.+)$", without_fences(goal.read_text()), re.M))
            assert fragment in set(known), f"{file.name}: {target}"


def test_each_word_of_the_glossary_has_one_meaning_in_one_sentence():
    rows = [row for table in tables(page("docs/glossary.md")) for row in table]
    words = [word for word, _, _ in rows]
    assert len(words) == len(set(words)) > 60
    for word, meaning, others in rows:
        assert re.fullmatch(r"[A-Z][^.]*(?:`[^`]*`[^.]*)*\.", meaning), word
        assert word not in others.split(", "), word
    assert "docs/glossary.md" in page("CONTRIBUTING.md")


def test_pages_are_linked_from_the_readme():
    for file in PAGES:
        assert file.name == "README.md" or f"{file.name})" in page("README.md"), file.name


def test_the_changelog_speaks_of_this_version_and_every_verb():
    text = page("CHANGELOG.md")
    assert f"## [{embedcache.__version__}]" in text
    for verb in VERBS:
        assert f"`{verb}`" in text, verb


def test_the_table_of_the_recipe_is_the_recipe():
    (table,) = tables(sections(page("docs/finetune.md"))["recipe"])
    stated = {key: default for key, default, _ in table}
    real = {key: str(value) for key, value in asdict(read_recipe()).items()}
    assert {key: value.lower() for key, value in real.items()} == stated
