"""`embedcache manifest`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedcache_cli import options
from embedcache_cli.output import print_json, print_line, print_table, say, short_path

if TYPE_CHECKING:
    from embedcache.data.troubles import ClassCount
    from embedcache.datasets.folder import FolderRows
    from embedcache.datasets.folder_files import LeftOut
    from embedcache.project import Project
    from embedcache.verbs.manifest import CheckReport, Written

_SHOWN = 5


@click.group(short_help="Write a manifest from a data set, or check one.")
def manifest() -> None:
    """Write data_manifest.csv from a data set or a folder, or check one against its images."""


_writing = options.compose(
    options.option("--root", type=options.FILE, required=True, help="Where the data set lies."),
    options.option(
        "-o",
        "--output",
        envvar="EMBEDCACHE_MANIFEST_OUTPUT",
        type=options.FILE,
        default="data_manifest.csv",
        show_default=True,
        help="Manifest to write.",
    ),
    options.option(
        "--data-root",
        type=options.FILE,
        help="Write paths relative to it.  [default: the manifest's]",
    ),
    options.option("--append", is_flag=True, help="Keep the rows that the manifest has already."),
    options.overwrite,
    options.option(
        "--allow-missing", is_flag=True, help="Write it although images are missing on disk."
    ),
    options.pseudonymise,
    options.as_json,
)


def _published(name: str, cohort: str, rows_of: Callable[..., Any], what: str) -> None:
    """Add the command of a published data set."""

    @manifest.command(name, short_help=f"From the published download of {what}.")
    @_writing
    @options.option("--table", type=options.FILE, help="Its table, if that lies elsewhere.")
    @options.option("--cohort", default=cohort, show_default=True, help="Name of the cohort.")
    def command(
        root: Path, table: Path | None, cohort: str, output: Path, as_json: bool, **settings: Any
    ) -> int:
        from embedcache.datasets import folder

        rows = folder.FolderRows(rows_of(root, table=table, cohort=cohort))
        return _write(rows, root, output, as_json, settings)

    command.help = f"Write a manifest from the published download of {what}."


def _fetal_planes(root: Path, **settings: Any) -> list[dict[str, str]]:
    from embedcache.datasets.fetal_planes import fetal_planes_rows

    return fetal_planes_rows(root, **settings)


def _african_planes(root: Path, **settings: Any) -> list[dict[str, str]]:
    from embedcache.datasets.african_planes import african_planes_rows

    return african_planes_rows(root, **settings)


_published("fetal-planes", "spain", _fetal_planes, "FETAL_PLANES_DB (Zenodo 3904280)")
_published("african-planes", "africa", _african_planes, "the African planes (Zenodo 7540448)")


@manifest.command(short_help="From a folder with one sub-folder a class.")
@_writing
@options.option(
    "--patient",
    required=True,
    metavar="REGEX",
    help="Finds the patient in each image's path; its first group, if it has one.",
)
@options.option("--cohort", help="Name of the cohort.  [default: the folder's]")
@options.option("--prefix", default="", help="Put before each patient.")
@options.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out paths below the root, and files and folders, that match; repeat for several.",
)
def folder(
    root: Path,
    patient: str,
    cohort: str | None,
    prefix: str,
    exclude: tuple[str, ...],
    output: Path,
    as_json: bool,
    **settings: Any,
) -> int:
    """Write a manifest from ROOT/CLASS/IMAGE, the patient found in each path.

    What gives no image is named. Exit code 3: images that cannot be read are left out.
    """
    from embedcache.datasets.folder import folder_rows

    rows = folder_rows(root, patient=patient, cohort=cohort, prefix=prefix, exclude=exclude)
    return _write(rows, root, output, as_json, settings)


def _write(
    rows: FolderRows, root: Path, output: Path, as_json: bool, settings: dict[str, Any]
) -> int:
    from embedcache.verbs.manifest import write_rows

    written = write_rows(rows.rows, root, output, **settings)
    if settings["pseudonymise"] is not None:
        say(
            "note: paths and other columns stay as they are, in the manifest and in the store: "
            "rename first what names patients"
        )
    if as_json:
        print_json({**_summary(written), "left_out": rows.left_out, "notes": rows.notes})
    else:
        _print_written(written)
        _print_left_out(rows.left_out)
        for note in rows.notes:
            say(f"note: {note}")
    is_incomplete = any(item.kind == "unreadable" for item in rows.left_out)
    return 3 if written.missing or is_incomplete else 0


def _summary(written: Written) -> dict[str, Any]:
    columns = written.manifest.columns
    return {
        "manifest": written.manifest.file,
        "n_images": len(written.manifest),
        "n_patients": len(set(columns["patient_id"])),
        "cohorts": sorted(set(columns["cohort"])),
        "classes": written.classes,
        "missing": written.missing,
    }


def _print_written(written: Written) -> None:
    facts = _summary(written)
    print_line(
        f"{short_path(written.manifest.file)}: {facts['n_images']} images, {facts['n_patients']} "
        f"patients, cohorts: {', '.join(facts['cohorts'])}"
    )
    _print_classes(written.classes)
    if written.missing:
        say(f"{len(written.missing)} images are not on disk:")
        _say_first(written.missing)


def _print_classes(classes: Sequence[ClassCount]) -> None:
    rows = [(c.cohort, c.label or "(none)", c.n_images, c.n_patients) for c in classes]
    print_table(("cohort", "label", "images", "patients"), rows)


def _print_left_out(left_out: Sequence[LeftOut]) -> None:
    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for item in left_out:
        by_kind[item.kind].append(f"{item.path} ({item.reason})")
    for kind, lines in sorted(by_kind.items()):
        say(f"left out, {kind}: {len(lines)}")
        _say_first(lines)


def _say_first(lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        say(f"  {line}")
    if len(lines) > _SHOWN:
        say(f"  ... and {len(lines) - _SHOWN} more; --json lists them all")


@manifest.command(short_help="Check a manifest and every image it names.")
@options.with_project
@options.as_json
def check(project: Project, as_json: bool) -> int:
    """Check that images are there, readable and unchanged, and that no patient leaks.

    Exit code 3: images are missing, unreadable or changed. 5: a patient stands in two cohorts, or
    one image under two patients.
    """
    report = project.check_manifest()
    if as_json:
        print_json(report)
    else:
        print_line(f"{report.manifest}: {report.n_images} images, {report.n_patients} patients")
        _print_classes(report.classes)
        for trouble in report.troubles:
            print_line(f"{trouble.kind}: {trouble.message}")
        print_line(_verdict(report))
    if report.has_leaks:
        return 5
    return 3 if report.is_incomplete else 0


def _verdict(report: CheckReport) -> str:
    n_kinds = len({trouble.kind for trouble in report.troubles})
    return f"{n_kinds} kinds of trouble" if n_kinds else "sound"
