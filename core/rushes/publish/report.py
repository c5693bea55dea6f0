# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Report: what each plug-in said, as lines for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Row:
    """One plug-in on one plate. plugin: its class's name; label: for people; subject: the plate's name, "" for none;
    message: the sentence of a failure, else what the plug-in logged last; repair: the label of an action that could
    put it right, else ""; trace: of an error that nobody foresaw; seconds: how long it took.
    """

    plugin: str
    label: str
    subject: str
    outcome: Outcome
    message: str = ""
    repair: str = ""
    trace: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """rows: in the order in which they ran; repaired: what actions have done; published: folders of new versions."""

    rows: tuple[Row, ...]
    repaired: tuple[str, ...]
    published: tuple[Path, ...]
    stopped: str = ""

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.outcome == "failed"]

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is published."""
        return bool(self.published) and not self.failures and not self.stopped

    @property
    def sentence(self) -> str:
        """The whole in one sentence, for an error line or a message box."""
        if self.ok:
            return f"published {', '.join(map(str, self.published))}"
        failures = self.failures
        if not failures:
            return f"publish: {self.stopped or 'there was nothing to publish'}"
        more = f" (and {len(failures) - 1} more, listed above)" if len(failures) > 1 else ""
        hint = f" (--repair: {failures[0].repair})" if failures[0].repair else ""
        return f"{failures[0].message}{hint}{more}"

    def to_text(self) -> str:
        """A line for each plug-in that has to do with a plate or something to say."""
        rows = [row for row in self.rows if row.subject or row.message]
        width = max((len(row.label) for row in rows), default=0)
        lines, subject = [], None
        for row in rows:
            if row.subject and row.subject != subject:
                lines.append(subject := row.subject)
            lines.append(f"  {row.outcome:<7}  {row.label:<{width}}  {row.message}".rstrip())
        if skipped := [row.label for row in self.rows if row.outcome == "skipped"]:
            lines.append(f"  skipped  {', '.join(skipped)}")
        lines += [f"repaired: {sentence}" for sentence in self.repaired]
        lines += [f"published: {folder}" for folder in self.published] or ["nothing is published"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": self.ok,
            "message": self.sentence,
            "published": [str(folder) for folder in self.published],
            "repaired": list(self.repaired),
            "rows": [asdict(row) for row in self.rows],
        }
