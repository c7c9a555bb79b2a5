"""`embedcache quickstart`."""

from __future__ import annotations

from pathlib import Path

import click

from embedcache_cli import options
from embedcache_cli.extract import print_report
from embedcache_cli.outcomes import exit_code, print_outcomes
from embedcache_cli.output import Screen, command_name, print_json, print_line, short_path
from embedcache_cli.progress import image_progress

_QUESTIONS = (
    "SELECT cohort, label, count(*) AS images, count(DISTINCT patient_id) AS patients "
    "FROM images GROUP BY ALL ORDER BY ALL",
    "SELECT patient_id, count(*) AS wrong FROM predictions WHERE NOT correct "
    "GROUP BY patient_id ORDER BY wrong DESC LIMIT 10",
    "SELECT encoder, cohort, value, low, high FROM metrics JOIN runs USING (run_id) "
    "WHERE metric = 'macro_f1' AND scoring = 'all' AND level = 'image' ORDER BY ALL",
)


@click.command(short_help="The whole of it on a small generated cohort, then what to type next.")
@options.option(
    "--into",
    type=options.FILE,
    default=".",
    show_default=True,
    help="Folder for manifest, images and store.",
)
@options.option("--seed", type=int, default=0, show_default=True, help="Of the generated pictures.")
@options.screen_with_progress
def quickstart(into: Path, seed: int, screen: Screen) -> int:
    """Generate two small cohorts, encode them, probe, test externally, and show what to ask.

    Needs no data and no downloads beyond `pip install "embedcache-fm[quickstart]"`.
    """
    import embedcache
    from embedcache.verbs import quickstart as steps

    def tell(text: str) -> None:
        if not (screen.quiet or screen.as_json):
            print_line(text)

    tell("1. Two cohorts of generated ultrasound pictures, from two 'scanners'")
    project = embedcache.Project(steps.prepare(into, seed=seed))
    tell(f"   {short_path(project.workspace.manifest)}: {steps.describe(project.images())}")
    tell("2. Every picture is encoded once: by ImageNet weights, and by random ones as a control")
    with image_progress(screen) as show:
        report = project.extract(steps.MODELS, on_progress=show)
    if not screen.as_json:
        print_report(report, every_failure=screen.verbose)
    tell("3. Linear probes: 5 folds by patient, C chosen inside, tested on the other cohort")
    outcomes = project.probe(steps.MODELS, on_message=lambda text: tell(f"   note: {text}"))
    if screen.as_json:
        print_json(outcomes.document())
    else:
        print_outcomes(outcomes, findings=outcomes.findings)
    where = "" if into == Path() else f" --manifest {project.workspace.manifest}"
    tell("4. Ask for more, in SQL (docs/sql.md has worked queries):")
    for question in _QUESTIONS:
        tell(f'   {command_name()} sql{where} "{question}"')
    tell(f"5. Written: {short_path(project.workspace.manifest)}, {short_path(into / 'phantom')}/,")
    tell(f"   {short_path(project.workspace.store)}/ (Zarr, Parquet, and catalog.duckdb)")
    tell(f"   Your own images: {command_name()} manifest folder --root DIR --patient REGEX")
    return exit_code(outcomes)
