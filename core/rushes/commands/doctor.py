# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes doctor`: what this machine has and what is missing."""

from __future__ import annotations

import dataclasses
import json

import click

_STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON list.")
def doctor(as_json: bool) -> None:
    """Say what this machine has and what is missing. Exits with 0 whatever it finds."""
    from rushes.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings]))
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        # Plain lines, not a table: they are pasted into reports, and a table would cut paths
        state = click.style(f"{finding.state:<7}", fg=_STYLES[finding.state])
        click.echo(f"{state}  {finding.name:<{width}}  {finding.text}")
