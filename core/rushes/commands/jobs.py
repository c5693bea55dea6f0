# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes worker`, `rushes jobs` and `rushes resume`: shots that are made in folders of their own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from rushes.commands.options import memory_option, parse_memory
from rushes.commands.reporting import make_reporter
from rushes.commands.stopping import Stopped, stop_on_signals
from rushes.jobs.folder import REVIEWS, Job, JobError, find_job, jobs_home, list_jobs, not_writable, remove_leftovers
from rushes.shot import ShotError

home_option = click.option(
    "--home", metavar="FOLDER", help="Where job folders live (default: RUSHES_JOBS, or the user's data folder)."
)


def jobs_folder(home: str | None) -> Path:
    """What --home means."""
    return Path(home).absolute() if home else jobs_home()


@click.command()
@home_option
@click.option("--log", metavar="FILE", help="Where its words go (default: worker.log in the home).")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ... (default: the fastest there is).")
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds until the model's memory is freed.",
)
@memory_option
def worker(home: str | None, log: str | None, device: str | None, idle: float, memory: str | None) -> None:
    """Make shots for a host: JSON-RPC on standard input and output. Hosts start it; people need not."""
    budget = parse_memory(memory)
    from rushes.jobs.worker import run_worker

    run_worker(jobs_folder(home), Path(log) if log else None, device, idle, budget)


@click.group(invoke_without_command=True)
@home_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def jobs(context: click.Context, home: str | None, as_json: bool) -> None:
    """List the jobs, newest last; `rushes jobs clean` removes those that are over."""
    context.obj = jobs_folder(home)
    if context.invoked_subcommand is not None:
        return
    rows = [_row(job) for job in list_jobs(context.obj)]
    if as_json:
        click.echo(json.dumps({"home": str(context.obj), "jobs": rows}))
        return
    for row in rows:
        verdict = f"{row['verdict']}: " if row["verdict"] else ""
        click.echo(f"{row['job']}  {row['state']:<11} {row['frames']:>4} frames  {verdict}{row['prompt']}")
    if not rows:
        click.echo(f"no jobs in {context.obj}")


def _row(job: Job) -> dict[str, Any]:
    try:
        prompt = job.request()["shot"]["prompt"]
        state = job.state()
    except ShotError as error:
        prompt, state = str(error), "unreadable"
    ending = job.ending() or {}
    return {
        "job": job.id, "folder": str(job.path), "state": state, "frames": len(job.frames()), "prompt": prompt,
        "message": ending.get("message", ""), "outputs": ending.get("outputs", []),
        "verdict": _verdict(job),
    }  # fmt: skip


def _verdict(job: Job) -> str | None:
    """What was last said of its frames, whether or not it still holds for them: `rushes review JOB` looks."""
    if not (job.path / REVIEWS).exists():
        return None
    from rushes.publish.review import read_reviews

    try:
        reviews = read_reviews(job.path / REVIEWS)
    except ShotError:
        return "review unreadable"
    return reviews[-1].verdict if reviews else None


@jobs.command()
@click.option(
    "--days", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Only those older than this."
)
@click.option(
    "--all", "everything", is_flag=True, help="Also failed, cancelled and interrupted ones, which could be resumed."
)
@click.pass_obj
def clean(home: Path, days: float, everything: bool) -> None:
    """Remove the folders of jobs that are done. Outputs elsewhere stay."""
    over = {"done", "failed", "cancelled", "interrupted"} if everything else {"done"}
    removed = 0
    for job in list_jobs(home):
        try:
            created = job.request()["created"]
        except ShotError as error:  # from the future, or broken: not ours to judge
            click.echo(f"kept: {error}", err=True)
            continue
        if job.state() in over and time.time() - created >= 86_400 * days:
            job.remove()
            removed += 1
    remove_leftovers(home)
    click.echo(f"{removed} jobs removed")


@jobs.command()
@click.argument("name", metavar="JOB")
@click.pass_obj
def cancel(home: Path, name: str) -> None:
    """Stop a JOB that any worker here is making, one whose host is gone too. `rushes resume JOB` goes on with it."""
    job = find_job(home, name)
    if not job.is_running():
        raise JobError(f"job: {job.id} is {job.state()}; one that is being made is allowed")
    try:
        job.ask_to_stop()
    except OSError as error:
        raise not_writable(job.path, error) from error
    click.echo(f"{job.id} is asked to stop")


@click.command()
@click.argument("name", metavar="JOB")
@home_option
@click.option("--device", metavar="DEVICE", help="cpu, cuda ... The bits are the same on the same device only.")
@memory_option
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on standard output.")
def resume(name: str, home: str | None, device: str | None, memory: str | None, as_json: bool) -> None:
    """Go on with an interrupted, failed or cancelled JOB, from its last saved step."""
    budget = parse_memory(memory)
    job = find_job(jobs_folder(home), name)
    job.request()  # before torch is loaded
    from rushes.jobs.runner import run_job
    from rushes.jobs.warm import Engines
    from rushes.progress import Progress

    with make_reporter(as_json) as reporter, stop_on_signals() as stop:

        def tell(event: str, **fields: Any) -> None:
            if event == "progress":
                reporter.progress(Progress(**fields))
            elif event == "note" and "attention" in fields:
                reporter.attention(fields["attention"])
            elif event == "note" and "reuse" in fields:
                reporter.reuse(fields["reuse"])
            elif event == "note":
                reporter.warning(fields["message"])

        job.reopen()
        state = run_job(job, Engines(device, budget).load, tell, stop.event)
        if state == "cancelled":
            raise Stopped(stop.signal)
    ending = job.ending() or {}
    if state == "failed":
        raise ShotError(f"job: {job.id} failed: {ending.get('message', 'its folder took no more')}")
    files = [*ending["outputs"], *(str(path) for path in job.frames())]
    if as_json:
        click.echo(json.dumps({"event": "done", "job": job.id, "files": files}))
    else:
        click.echo("\n".join(ending["outputs"] or [str(job.frames_folder)]))
