"""The READMEs, and the commands in them."""

import re
from typing import NamedTuple

from scripts import REPOSITORY

PAGES = (
    "README.md",
    "projects/README.md",
    "weights/README.md",
    "weights/efficientdet-d0_shapes.md",
    "efficientdet/training/README.md",
    "efficientdet/inference/README.md",
    "efficientdet/evaluation/README.md",
    "efficientdet/export/README.md",
    "efficientdet/benchmark/README.md",
    "tests/README.md",
    "tests/golden/README.md",
)


class Command(NamedTuple):
    page: str
    text: str  # with a heredoc, if it has one

    @property
    def name(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:90]}"


def blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[Command]:
    """Return the commands of a page's bash blocks without their comments; a heredoc belongs to its command."""
    found = []
    for block in blocks(page, "bash"):
        for command in re.findall(r"^[^\n]*<<'EOF'\n.*?^EOF$|^[^\n]+$", block, flags=re.MULTILINE | re.DOTALL):
            if "<<" not in command:
                command = re.sub(r"\s+#.*", "", command)
            found.append(Command(page, command))
    return found


def inline_commands(page: str) -> list[Command]:
    """Return the commands of this project that a page's sentences name in full."""
    prose = re.sub(r"^```.*?^```", "", (REPOSITORY / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    pieces = (re.sub(r"\s+", " ", piece) for piece in re.findall(r"`([^`]+)`", prose))
    return [Command(page, piece) for piece in pieces if re.match(r"(python|efficientdet-\w+) (?!-m$)", piece)]
