"""The sections of an evaluation report, as HTML, and their texts."""

from collections.abc import Mapping

import numpy as np

from efficientdet.evaluation.analysis import Analysis
from efficientdet.evaluation.coco import Evaluation
from efficientdet.evaluation.markup import chart, paragraph, table

_MAX_CONFUSIONS = 10  # pairs of classes that are listed
_MEANINGS = {  # of COCO's twelve numbers
    "AP": "average precision, the mean over IoU thresholds 0.50, 0.55 … 0.95: COCO's main metric",
    "AP50": "average precision at IoU threshold 0.50",
    "AP75": "average precision at IoU threshold 0.75",
    "AP_small": "AP of objects below 32 × 32 pixels",
    "AP_medium": "AP of objects from 32 × 32 to 96 × 96 pixels",
    "AP_large": "AP of objects above 96 × 96 pixels",
    "AR_1": "average recall (the share of the objects that is found) with 1 detection per class and image",
    "AR_10": "average recall with 10 detections per class and image",
    "AR_100": "average recall with 100 detections per class and image",
    "AR_small": "AR_100 of objects below 32 × 32 pixels",
    "AR_medium": "AR_100 of objects from 32 × 32 to 96 × 96 pixels",
    "AR_large": "AR_100 of objects above 96 × 96 pixels",
}
_ADVICE = {  # by cause: what it is, and what helps
    "classification": "The box is right, but the class is wrong. Find the pair of classes under Confusions; if its "
    "labels are consistent, add images that show the difference.",
    "localisation": "The class is right, but the box is inaccurate (IoU 0.1 to 0.5). If the annotated boxes are tight, "
    "train longer or with a larger --image_size, and check that the anchors fit.",
    "both": "An object is near, but class and box are wrong: usually a sign of too little training. Train longer or "
    "with more images.",
    "duplicate": "A detection with a higher score has found the object already. Lower --iou_threshold, unless that "
    "loses overlapping objects.",
    "background": "There is no object. Look at the images: often there is one without a label. Otherwise, add images "
    "without objects that look similar.",
    "missed": "No detection is near. If these objects are small, use a larger --image_size; otherwise, add images of "
    "them.",
}
_NOTES = {  # by section
    "Classes": "Click a heading to sort. F1 is the best that the class reaches; precision (the share of the detections "
    "that is right) and recall (the share of the boxes that is found) are those at the same score threshold.",
    "Precision and recall": "Each point of a curve is a score threshold. The closer a curve is to the top right "
    "corner, the better.",
    "Confusions": "Rows are the classes of the ground truth, columns the detected classes; the color is the share of "
    "the row. The last column counts missed boxes, the last row detections of background or of a box that is found "
    "already.",
    "Causes of errors": "Each wrong detection has one cause, and a box is missed if no detection is near it (TIDE: "
    "Bolya et al. 2020). AP50 lost is how much AP50 would rise without this cause. All errors are those among all "
    "detections, down to the lowest score in the results.",
    "Sizes": "Small objects are below 32 × 32 pixels of the image, large objects above 96 × 96.",
}


def number_sections(
    facts: Mapping[str, str], evaluation: Evaluation, analysis: Analysis, charts: Mapping[str, bytes]
) -> dict[str, str]:
    """Return the sections by heading. `charts` are PNG files by the names of `figures.charts`."""
    curve = analysis.all_classes
    threshold = f"{analysis.score_threshold:.2f}"
    on_threshold = (
        f"The best F1 of all classes together, {np.nan_to_num(curve.f1)[curve.best]:.3f}, is reached at the score "
        f"threshold {threshold}. Pass it to efficientdet_test.py as --score_threshold, or a higher one if false "
        "positives cost more than missed objects."
    )
    class_headings = ("class", "boxes", "AP", "AP50", "AR", "F1", "at score", "precision", "recall")
    cause_headings = ("cause", f"errors at score {threshold}", "all errors", "AP50 lost", "what helps")
    sections = {
        "Summary": paragraph(_summary(evaluation, analysis)),
        "What was evaluated": table((), facts.items()),
        "COCO metrics": table((), [(name, value, _MEANINGS[name]) for name, value in evaluation.by_name().items()]),
        "Classes": table(class_headings, analysis.classes) + chart(charts["classes"], "average precision by class"),
        "Precision and recall": chart(charts["precision_recall"], "precision over recall"),
        "Score threshold": paragraph(on_threshold)
        + chart(charts["f1"], "F1, precision and recall over the score threshold"),
        "Confusions": chart(charts["confusion"], "confusion matrix") + _confusions(analysis),
        "Causes of errors": chart(charts["causes"], "errors by cause")
        + table(cause_headings, [(*row, _ADVICE[row.name]) for row in analysis.causes]),
        "Sizes": table(("size", "boxes", "AP", "AP50", "AR"), analysis.sizes)
        + chart(charts["sizes"], "average precision by size"),
    }
    for heading, note in _NOTES.items():
        sections[heading] = paragraph(note) + sections[heading]
    return sections


def _summary(evaluation: Evaluation, analysis: Analysis) -> str:
    curve = analysis.all_classes
    if not curve.objects:
        return "The set has no boxes, so average precision is undefined."
    numbers = evaluation.by_name()
    text = f"AP is {numbers['AP']:.3f}, AP50 {numbers['AP50']:.3f}."
    if not curve.true_positives[0]:
        return f"{text} No detection finds an object at IoU 0.5."
    precision, recall = curve.precision[curve.best], curve.recall[curve.best]
    text += f" At score threshold {analysis.score_threshold:.2f}, {recall:.0%} of the {curve.objects:,} boxes are found"
    text += f", and {precision:.0%} of the detections are right."
    costliest = max(analysis.causes, key=lambda row: row.gain)
    if costliest.gain:
        text += f" The costliest cause of errors is {costliest.name}: it costs {costliest.gain:.3f} of AP50. "
        text += _ADVICE[costliest.name]
    return text


def _confusions(analysis: Analysis) -> str:
    """List the pairs of classes that are confused most often."""
    confusion = analysis.class_confusion
    order = np.argsort(-confusion, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    rows = [
        (analysis.classes[i].name, analysis.classes[j].name, int(confusion[i, j]), analysis.classes[i].boxes)
        for i, j in zip(*np.unravel_index(order, confusion.shape))
        if confusion[i, j]
    ]
    if not rows:
        return paragraph("No object is detected as another class.")
    return table(("ground truth", "detected as", "times", "of boxes"), rows)
