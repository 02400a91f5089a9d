"""The READMEs as pages: every link and image exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, commands
from scripts import REPOSITORY

IMAGES = REPOSITORY / ".github" / "images"
MAX_LINES, MAX_IMAGE_BYTES = 250, 150_000


def test_setup_commands_come_first():
    first, second = commands("README.md")[:2]
    setup = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"
    assert first.text == f"{setup} && python efficientdet_test.py"
    assert second.text == f"{setup} pytest pytest-xdist && python -m pytest tests -n auto --dist loadfile"


def test_first_page_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= MAX_LINES


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = REPOSITORY / page
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_all_pages_are_tested():
    patterns = ("README.md", "[a-z]*/README.md", "efficientdet/*/README.md", "tests/*/README.md", "weights/*.md")
    found = {path.relative_to(REPOSITORY).as_posix() for pattern in patterns for path in REPOSITORY.glob(pattern)}
    assert found == set(PAGES)


def test_images_are_small_and_shown():
    files = sorted(IMAGES.iterdir())
    assert len(files) >= 5
    text = "".join((REPOSITORY / page).read_text() for page in PAGES)
    for path in files:
        assert path.stat().st_size <= MAX_IMAGE_BYTES
        assert f".github/images/{path.name}" in text


def test_images_script_knows_its_images():
    command = [sys.executable, ".github/make_images.py", "--help"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(path.stem in shown for path in IMAGES.iterdir())


def test_json_lines_in_the_pages_are_json():
    for page in PAGES:
        for line in re.findall(r"^\{\"file\".*\}$", (REPOSITORY / page).read_text(), flags=re.MULTILINE):
            json.loads(line)
