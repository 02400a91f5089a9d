"""The HTML of a report: one file that needs nothing else, neither the network nor other files."""

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --pale: #666; --paper: #fff; --line: #ddd; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --pale: #a0a0a0; --paper: #181818; --line: #3a3a3a; --link: #8ab4f8; }
  .chart { filter: invert(0.906) hue-rotate(180deg); }
}
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
body { color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); } nav a { margin-right: 1em; white-space: nowrap; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption, .note { color: var(--pale); }
.wide { overflow-x: auto; }
@media (max-width: 40rem) { figure { overflow-x: auto; } .chart { max-width: none; width: 200%; } }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: 0.2rem 0.7rem 0.2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { all: unset; cursor: pointer; color: var(--link); } th button:focus-visible { outline: 2px solid; }
th[aria-sort=descending] button::after { content: " ▾"; } th[aria-sort=ascending] button::after { content: " ▴"; }
"""
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0];
  const falling = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const text = row => row.cells[head.cellIndex].textContent, number = row => parseFloat(text(row).replaceAll(",", ""));
  const compare = (a, b) => isNaN(number(a)) || isNaN(number(b))
    ? isNaN(number(a)) - isNaN(number(b)) || (falling ? -1 : 1) * text(a).localeCompare(text(b))
    : (falling ? -1 : 1) * (number(a) - number(b));
  body.append(...[...body.rows].sort(compare));
};
"""


def document(title: str, sections: Mapping[str, str]) -> str:
    """Return a page of sections, HTML by heading, with links to each."""
    anchors = {heading: heading.lower().replace(" ", "-") for heading in sections}
    links = "".join(f'<a href="#{anchor}">{heading}</a> ' for heading, anchor in anchors.items())
    content = "".join(
        f'<section id="{anchors[heading]}"><h2>{heading}</h2>{html}</section>' for heading, html in sections.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{content}<script>{_SCRIPT}</script></body></html>"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def chart(png: bytes, description: str) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<figure><img class="chart" alt="{escape(description)}" src="{source}"></figure>'


def photograph(jpeg: bytes, description: str, caption: str) -> str:
    image = f'<img alt="{escape(description)}" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """Return a table that is sorted by a click on a heading. Numbers are aligned to the right."""
    rows = list(rows)
    head = "".join(
        f"<th{_alignment(value)}><button>{escape(heading)}</button></th>"
        for heading, value in zip(headings, rows[0] if rows else ())
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str | int | float) -> str:
    text = escape(value) if isinstance(value, str) else f"{value:,}"
    if isinstance(value, float):
        text = "–" if math.isnan(value) else f"{value:.3f}"
    return f"<td{_alignment(value)}>{text}</td>"


def _alignment(value: str | int | float) -> str:
    return "" if isinstance(value, str) else ' class="number"'
