"""What is wrong with a data set, as values: collected, grouped by kind, told in short or in full."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. Its texts are one sentence: file, subject, message, advice.

    An error spoils what is learnt or measured. A warning may be as it should be, and is to be looked at.
    """

    level: Level
    kind: str  # what this fault and its like are called, in the plural: "missing images"
    file: Path  # the image or the annotation file that is to be changed
    subject: str  # "image 12", "annotation 7 of image 12"; empty when it is the file
    message: str  # begins with its verb
    advice: str

    @property
    def case(self) -> str:
        """The sentence without the advice."""
        return f"{self.file}: {self.subject} {self.message}" if self.subject else f"{self.file} {self.message}"

    def __str__(self) -> str:
        return f"{self.case}: {self.advice}"


def by_kind(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of one kind and advice together, errors first, otherwise in the order of their first."""
    groups: dict[tuple, list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.kind, finding.advice), []).append(finding)
    return sorted(groups.values(), key=lambda group: group[0].level)  # "error" < "warning"; sorting is stable


def in_short(group: list[Finding]) -> str:
    """Findings of one kind in a sentence: the first of them, and how many there are."""
    more = f" (the first of {len(group):,} {group[0].kind})" if len(group) > 1 else ""
    return f"{group[0]}{more}"


def in_full(group: list[Finding], most: int | None) -> Iterator[str]:
    """Findings of one kind as lines: what and how many, the first `most` of them (None: all), what to do."""
    yield f"{group[0].level}: {group[0].kind}: {len(group):,}"
    shown = group[:most]
    for finding in shown:
        yield f"  {finding.case}"
    if len(shown) < len(group):
        yield f"  and {len(group) - len(shown):,} more (--all lists them)"
    yield f"  -> {group[0].advice}"
