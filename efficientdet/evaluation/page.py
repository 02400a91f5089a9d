"""An evaluation as one HTML page that needs nothing else: no network, no other file."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from efficientdet.evaluation.analysis import Analysis
from efficientdet.evaluation.coco import Evaluation

MOST_CONFUSIONS = 10
# COCO's twelve numbers.
_MEANINGS = {
    "AP": "average precision over IoU 0.50, 0.55 … 0.95: COCO's main number",
    "AP50": "average precision when a box counts as right from IoU 0.50",
    "AP75": "average precision when a box counts as right from IoU 0.75",
    "AP_small": "AP of objects below 32 × 32 pixels",
    "AP_medium": "AP of objects between",
    "AP_large": "AP of objects above 96 × 96 pixels",
    "AR_1": "average recall: the share of the objects found, with one detection of each class per image",
    "AR_10": "average recall with ten",
    "AR_100": "average recall with a hundred",
    "AR_small": "AR_100 of objects below 32 × 32 pixels",
    "AR_medium": "AR_100 of objects between",
    "AR_large": "AR_100 of objects above 96 × 96 pixels",
}
# By cause: what it is, and what helps.
_ADVICE = {
    "classification": "The box is right, the class is not: look for the pair in the confusions; if its labels are "
    "consistent, add images that show the difference.",
    "localisation": "The class is right, the box is loose (IoU 0.1 to 0.5): if the true boxes are tight, train "
    "longer or with a larger --image_size, and check that the anchors fit.",
    "both": "Something is near, but neither class nor box is right: mostly too little learnt, so train longer or with "
    "more images.",
    "duplicate": "A surer detection has found the object already: lower --nms_threshold, unless objects that overlap "
    "get lost.",
    "background": "Nothing is there: look at the images, as often an object is there and has no label; else add "
    "images without objects that look so.",
    "missed": "No detection comes near: take a larger --image_size if these objects are small; else add images of "
    "them.",
}
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


def report_page(
    title: str,
    facts: Mapping[str, str],
    evaluation: Evaluation,
    analysis: Analysis,
    charts: Mapping[str, bytes],
    worst: Sequence[tuple[str, bytes]],
    seconds: Mapping[str, float],
    images: int,
) -> str:
    """The page.

    Args:
        facts: what was evaluated and how, by name.
        charts: PNG files by name, as `eval_images.charts`.
        worst: captions and JPEG files.
        seconds: by part of the evaluation; may be empty.
        images: how many were evaluated.
    """
    sections = {
        "In short": _in_short(evaluation, analysis),
        "What was evaluated": _table((), facts.items()),
        "The twelve numbers": _table(
            (), [(name, value, _MEANINGS[name]) for name, value in evaluation.by_name().items()]
        ),
        "Classes": _note(
            "Click on a heading to sort. F1 is the best that the class reaches, when detections count from the score "
            "beside it; precision (the share of them that is right) and recall (the share of the boxes found) are "
            "those at that score."
        )
        + _table(("class", "boxes", "AP", "AP50", "AR", "F1", "from score", "precision", "recall"), analysis.classes)
        + _chart(charts["classes"], "average precision by class"),
        "Precision and recall": _note(
            "Every point is a lowest score that counts. The further a line keeps to the top and the right, the better."
        )
        + _chart(charts["precision_recall"], "precision over recall"),
        "Which score threshold": _note(
            f"The highest F1 of all boxes, {_best_f1(analysis):.3f}, is reached when detections count from the score "
            f"{analysis.score_threshold:.2f}. Pass it as --threshold to detect, or a higher one where false alarms "
            "cost more than missed objects."
        )
        + _chart(charts["f1"], "F1, precision and recall over the score threshold"),
        "Confusions": _note(
            "Rows are the true boxes, columns what they are detected as; the colour is the share of its row. The last "
            "column are boxes that nothing finds, the last row detections of nothing, or of what is found already."
        )
        + _chart(charts["confusion"], "confusion matrix")
        + _confusions(analysis),
        "Why precision is lost": _note(
            "Every wrong detection has one cause, and an object is missed when none of them comes near (TIDE: Bolya "
            "et al. 2020). AP50 lost is what it would gain if that cause alone were gone. All errors are counted down "
            "to the lowest score in the results."
        )
        + _chart(charts["causes"], "errors by cause")
        + _table(
            ("cause", f"errors from score {analysis.score_threshold:.2f}", "all errors", "AP50 lost", "what helps"),
            [(*row, _ADVICE[row.name]) for row in analysis.causes],
        ),
        "Sizes": _note("Small objects are below 32 × 32 pixels of the image, large ones above 96 × 96.")
        + _table(("size", "boxes", "AP", "AP50", "AR"), analysis.sizes)
        + _chart(charts["sizes"], "average precision by size"),
        "The worst images": _note(
            f"Those with the most errors, with detections from the score {analysis.score_threshold:.2f} on the left "
            "and the true boxes on the right."
        )
        + "".join(_photograph(jpeg, caption) for caption, jpeg in worst),
    }
    if seconds:
        rows = [(part, value, 1000 * value / images) for part, value in seconds.items()]
        sections["Time"] = _table(("part", "seconds", "milliseconds per image"), rows)
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


def _in_short(evaluation: Evaluation, analysis: Analysis) -> str:
    curve = analysis.all_classes
    if not curve.boxes:
        return _note("The set has no boxes, so there is nothing to find, and average precision is not defined.")
    numbers = evaluation.by_name()
    sentences = f"AP is {numbers['AP']:.3f}, AP50 {numbers['AP50']:.3f}."
    if not curve.right[0]:
        return _note(f"{sentences} No detection finds an object by IoU 0.5.")
    precision, recall = curve.precision[curve.best], curve.recall[curve.best]
    sentences += (
        f" With scores from {analysis.score_threshold:.2f}, {recall:.0%} of the {curve.boxes:,} boxes are found, and "
        f"{precision:.0%} of the detections are right."
    )
    worst = max(analysis.causes, key=lambda row: row.gain)
    if worst.gain:
        sentences += f" The cause that costs most is {worst.name}, with {worst.gain:.3f} of AP50. {_ADVICE[worst.name]}"
    return _note(sentences)


def _confusions(analysis: Analysis) -> str:
    """A list of the pairs of classes that are confused most."""
    names, matrix = [row.name for row in analysis.classes], analysis.confusion[:-1, :-1]
    between = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-between, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, between.shape)) if between[row, column]]
    if not pairs:
        return _note("No object is taken for one of another class.")
    boxes = [row.boxes for row in analysis.classes]
    return _table(
        ("truth", "detected as", "times", "of boxes"),
        [(names[row], names[column], int(between[row, column]), boxes[row]) for row, column in pairs],
    )


def _best_f1(analysis: Analysis) -> float:
    return float(np.nan_to_num(analysis.all_classes.f1).max())


def _note(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _chart(png: bytes, text: str) -> str:
    return f'<figure><img class="chart" alt="{escape(text)}" src="{_data_uri("png", png)}"></figure>'


def _photograph(jpeg: bytes, caption: str) -> str:
    image = f'<img alt="detections beside the truth" src="{_data_uri("jpeg", jpeg)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _table(headings: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Numbers stand to the right. Headings sort."""
    rows = list(rows)
    head = (
        "".join(
            f"<th{_alignment(value)}><button>{escape(text)}</button></th>" for text, value in zip(headings, rows[0])
        )
        if rows
        else ""
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        value_text = "–" if math.isnan(value) else f"{value:.3f}"
    else:
        value_text = escape(value) if isinstance(value, str) else f"{value:,}"
    return f"<td{_alignment(value)}>{value_text}</td>"


def _alignment(value: str | int | float) -> str:
    return "" if isinstance(value, str) else ' class="number"'
