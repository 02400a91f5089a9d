"""Faults of a data set as values: collected, grouped by kind, formatted in short or in full."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, as one sentence of file, subject, message and advice. What a warning reports may be intended."""

    level: Level
    kind: str  # in the plural: "missing images"
    file: Path  # the image or annotation file to change
    subject: str  # "image 12", "annotation 7 of image 12"; empty if it is the file
    message: str  # begins with its verb
    advice: str

    @property
    def case(self) -> str:
        """The sentence without the advice."""
        return f"{self.file}: {self.subject} {self.message}" if self.subject else f"{self.file} {self.message}"

    def __str__(self) -> str:
        return f"{self.case}: {self.advice}"


def group_by_kind(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Group findings of the same kind and advice, errors first, otherwise in order of first appearance."""
    groups: dict[tuple, list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.kind, finding.advice), []).append(finding)
    return sorted(groups.values(), key=lambda group: group[0].level)  # "error" < "warning"; sorting is stable


def format_short(group: list[Finding]) -> str:
    """Return one sentence for a group: its first finding and the number of findings."""
    more = f" (the first of {len(group):,} {group[0].kind})" if len(group) > 1 else ""
    return f"{group[0]}{more}"


def format_full(group: list[Finding], limit: int | None) -> Iterator[str]:
    """Yield lines for a group: kind and number, the first `limit` findings (None: all), the advice."""
    yield f"{group[0].level}: {group[0].kind}: {len(group):,}"
    shown = group[:limit]
    for finding in shown:
        yield f"  {finding.case}"
    if len(shown) < len(group):
        yield f"  and {len(group) - len(shown):,} more (--all lists them)"
    yield f"  -> {group[0].advice}"
