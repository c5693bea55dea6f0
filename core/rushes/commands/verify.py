# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes verify`: whether a plate or movie is complete and unchanged, pixel by pixel."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass

import click

from rushes.commands.options import check_text
from rushes.commands.reporting import make_reporter


@dataclass(frozen=True)
class _Progress:
    step: int
    steps: int
    seconds_per_step: float
    phase: str = "verify"

    @property
    def remaining(self) -> float:
        return self.seconds_per_step * (self.steps - self.step)


@click.command()
@click.argument("pattern", metavar="PATTERN")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout.")
def verify(pattern: str, as_json: bool) -> int:
    """Read every pixel of PATTERN (plate.%04d.exr, shot.mov ...) and compare it with the manifest beside it.

    Exit 0: complete and unchanged. 1: not so, or there is no manifest that could prove it.
    """
    from rushes.media import verify as verify_output

    started = time.perf_counter()
    with make_reporter(as_json) as reporter:

        def tell(done: int, total: int) -> None:
            reporter.progress(_Progress(done, total, (time.perf_counter() - started) / done))

        found = verify_output(check_text("pattern", pattern), on_file=tell)
    if as_json:
        for finding in found.findings:
            click.echo(json.dumps({"event": "finding", **dataclasses.asdict(finding)}))
        result = {"ok": found.ok, "proven": found.is_proven, "frames": found.frames, "findings": len(found.findings)}
        click.echo(json.dumps({"event": "verified", **result, "message": found.sentence}))
    else:
        for finding in found.findings:
            click.echo(finding.sentence)
        click.echo(found.sentence)
    return 0 if found.ok else 1
