# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes models get`: fetches an open model, after a plain question. The only command that downloads anything."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from rushes.jobs.plan import describe_bytes
from rushes.shot import ShotError

if TYPE_CHECKING:
    from rushes.model.hub import Item, OnBytes

_EVERY = 0.5  # seconds between two events of --json


@click.command()
@click.argument("name", required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout.")
def get(name: str | None, yes: bool, as_json: bool) -> None:
    """Fetch the model NAME from the Hugging Face hub (or HF_ENDPOINT) into its cache; without NAME, list what there is.

    Parts that are on this machine already are not fetched; what came before an interruption is kept.
    """
    from rushes.model.offers import OFFERS

    if name is None:
        rows = [{"name": known, "about": offer.about, "license": "apache-2.0"} for known, offer in OFFERS.items()]
        click.echo(json.dumps(rows) if as_json else "\n".join(f"{row['name']}: {row['about']}" for row in rows))
        return
    if name not in OFFERS:
        near = difflib.get_close_matches(name, OFFERS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ShotError(f"name: got {name!r}; {', '.join(OFFERS)} are allowed{hint}")
    from rushes.model import hub
    from rushes.model.shelf import lacking, look

    sources = lacking(look(), OFFERS[name].sources)
    items = hub.ask(sources)
    size = hub.check_space(items)
    if size and not yes:
        _ask(name, items, size)
    with _bar(as_json) as tell:
        paths = [hub.fetch(item, tell) for item in items]
    if as_json:
        click.echo(json.dumps({"event": "done", "name": name, "files": [str(path) for path in paths], "bytes": size}))
    else:
        click.echo(f"{name}: {describe_bytes(size)} fetched; `rushes models` lists what they make")


def _ask(name: str, items: Sequence[Item], size: int) -> None:
    from rushes.model.hub import endpoint
    from rushes.model.offers import LICENSE
    from rushes.model.places import hub_cache

    repositories = " and ".join(dict.fromkeys(item.repository for item in items))
    question = (
        f"{name}: {describe_bytes(size)} in {len(items)} files from {repositories} at {endpoint()}, licence {LICENSE}, "
        f"into {hub_cache()}. Fetch?"
    )
    if not sys.stdin.isatty():
        raise ShotError(f"yes: it is missing, and nobody can be asked here ({question}); --yes is allowed")
    if not click.confirm(question, err=True):
        raise click.Abort()


@contextmanager
def _bar(as_json: bool) -> Iterator[OnBytes]:
    """What is told of the bytes: events for programs, a bar on a terminal, nothing into a log file."""
    if as_json:
        yield _events()
        return
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(32), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, object] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for other in tasks.values():
                    bar.update(other, visible=False)  # type: ignore[arg-type]
                tasks[what] = bar.add_task(what, total=total, completed=done)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield tell


def _events() -> OnBytes:
    told = [0.0]

    def tell(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - told[0] >= _EVERY:
            told[0] = now
            click.echo(json.dumps({"event": "progress", "phase": what, "step": done, "steps": total}))

    return tell
