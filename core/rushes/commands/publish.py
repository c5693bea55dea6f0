# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes review` and `rushes publish`: a person's verdict, and the version that others rely on."""

from __future__ import annotations

import json
from typing import Any

import click

from rushes.commands.jobs import home_option, jobs_folder
from rushes.commands.options import check_text, parse_int
from rushes.commands.reporting import make_reporter
from rushes.commands.stopping import stop_on_signals
from rushes.shot import ShotError


@click.command()
@click.argument("subject", metavar="JOB|PATTERN")
@click.option("--by", metavar="NAME", help="Who has looked at it.")
@click.option("--verdict", metavar="VERDICT", help="approved or rejected; without it the reviews are shown.")
@click.option("--note", metavar="TEXT", default="", help="What to say of it.")
@home_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def review(subject: str, by: str | None, verdict: str | None, note: str, home: str | None, as_json: bool) -> None:
    """Say that a person has looked at a plate or a job's frames; nothing is published without it.

    It holds for exactly the files that are there now. Without --verdict it shows what was said.
    """
    from rushes.publish.review import add_review, read_reviews, shown
    from rushes.publish.subject import find_subject

    found = find_subject(check_text("JOB|PATTERN", subject), jobs_folder(home))
    if verdict is not None:
        if by is None:
            raise ShotError("--by: it is missing; the name of who has looked at it is allowed")
        add_review(found, check_text("--by", by), verdict, check_text("--note", note))
    elif by is not None or note:
        raise ShotError("--verdict: it is missing; approved or rejected is allowed")
    about = shown(found.review_path, found.content())
    if as_json:
        click.echo(json.dumps({"subject": found.pattern, "file": str(found.review_path), **about}))
        return
    reviews = read_reviews(found.review_path)
    for entry in reviews:
        click.echo(str(entry))
    if not reviews:
        click.echo("nobody has looked at it yet")
    elif not about["holds"]:
        click.echo("the files have changed since; the last review does not hold for them")


@click.command()
@click.argument("sources", nargs=-1, metavar="JOB|PATTERN …")
@click.option("--to", "root", metavar="ROOT", help="The folder that published versions are in.")
@click.option("--settings", metavar="FILE", help="The project's rushes-publish.toml (default: found from ROOT upward).")
@click.option("--shot", metavar="NAME", help="The shot's name (default: the file's, up to its first underscore).")
@click.option("--name", metavar="NAME", help="The plate's name (default: the file's, without its version).")
@click.option("--version", metavar="N", help="This version and no other (default: the next one).")
@click.option("--repair", is_flag=True, help="Do what is safe to put a failed check right, then check again.")
@home_option
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on standard output.")
@click.option("--plugins", "wants_folder", is_flag=True, help="Print the plug-ins' folder, for PYBLISHPLUGINPATH.")
def publish(
    sources: tuple[str, ...],
    root: str | None,
    settings: str | None,
    shot: str | None,
    name: str | None,
    version: str | None,
    repair: bool,
    home: str | None,
    as_json: bool,
    wants_folder: bool,
) -> None:
    """Check a reviewed plate, a pattern or what a job has made, and publish it under ROOT as a new version."""
    from rushes.publish.progress import Cancelled
    from rushes.publish.runner import plugin_folder, run

    if wants_folder:
        click.echo(plugin_folder())
        return
    if not sources:
        raise ShotError("JOB|PATTERN: it is missing; a job, or a plate such as plate.%04d.exr, is allowed")
    if not root:
        raise ShotError("--to: it is missing; the folder that published versions are in is allowed")
    options: dict[str, Any] = {
        "settings": settings, "shot": shot, "name": name, "home": jobs_folder(home), "is_repairing": repair,
        "version": None if version is None else parse_int("version", version),
    }  # fmt: skip
    with make_reporter(as_json) as reporter, stop_on_signals() as stop:
        try:
            report = run(
                [check_text("JOB|PATTERN", source) for source in sources], root,
                on_progress=reporter.progress, cancel=stop.event, **options,
            )  # fmt: skip
        except Cancelled:
            stop.check()
            raise
    if as_json:
        click.echo(json.dumps({"event": "report", **report.to_dict()}))
    else:
        click.echo(report.to_text())
    if not report.ok:
        raise ShotError(report.sentence)
