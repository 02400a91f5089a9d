"""The report of an evaluation: its files, its page, its numbers."""

import base64
import html.parser
import json
import math
import re

import numpy as np
import pytest
from conftest import SHAPES_YML
from results import each_cause, explain, found, truth, write_set

from efficientdet.evaluation.coco import NUMBER_NAMES
from efficientdet.evaluation.error_causes import CAUSES
from efficientdet.evaluation.figures import LONGEST_SIDE, charts, draw_errors
from efficientdet.evaluation.report import report_folder, write_report
from efficientdet.project import load_project
from utils.errors import InputError
from utils.images import read_image

CHARTS = {"classes", "precision_recall", "f1", "confusion", "causes", "sizes"}
VOID_TAGS = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """The content of an HTML file, whose tags must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        assert tag not in ("link", "iframe", "base") and not any(name.startswith("on") for name in values)
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def write(folder, dataset, results, facts=None, seconds=None):
    evaluation, details, analysis = explain(dataset, results)
    write_report(folder, dataset, evaluation, details, analysis, facts or {}, seconds)
    return Page((folder / "report.html").read_text(encoding="utf-8")), json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Return folder, page and numbers of the report on a set with an error of each cause."""
    root = tmp_path_factory.mktemp("reported")
    (root / "made.yml").write_text(SHAPES_YML)
    folder = root / "logs" / "eval"
    data = each_cause(root, load_project(root / "made.yml"))
    return folder, *write(folder, *data, {"weights": "some.pth"}, {"network": 1.5})


def test_report_without_objects_and_detections(tmp_path, make_project):
    page, numbers = write(tmp_path / "eval", write_set(tmp_path, make_project(), [1], []), [])
    assert "no boxes" in page.text and "time" not in page.ids
    assert numbers["numbers"] == dict.fromkeys(NUMBER_NAMES)
    assert not (tmp_path / "eval" / "worst").exists()


def test_report_without_detections(tmp_path, make_project):
    page, numbers = write(tmp_path / "eval", write_set(tmp_path, make_project(), [1], [truth()]), [])
    assert "No detection finds an object" in page.text
    assert numbers["numbers"]["AP"] == 0


def test_folder_holds_the_page_its_images_and_the_numbers(reported):
    folder, page, _ = reported
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert names == {
        *(f"{name}.png" for name in CHARTS), "report.html", "report.json", "worst/01_1.jpg", "worst/02_2.jpg"
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["eval"]
    embedded = [base64.b64decode(source.split(",")[1]) for source in page.sources]
    images = [path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".png", ".jpg")]
    assert sorted(embedded) == sorted(images)


def test_page_needs_no_other_file(reported):
    folder, page, _ = reported
    assert all(source.startswith("data:image/") for source in page.sources)
    assert page.links == [f"#{anchor}" for anchor in page.ids] and len(page.ids) > 8
    text = re.sub(r"base64,[^\"]*", "", (folder / "report.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//|url\(|@import|import\(|fetch", text)


def test_page_shows_numbers_causes_and_images(reported):
    _, page, numbers = reported
    text = page.text
    assert f"AP is {numbers['numbers']['AP']:.3f}" in text and "some.pth" in text
    assert all(name in text for name in (*NUMBER_NAMES, *CAUSES, "square", "disc"))
    assert "costliest cause of errors is classification" in text
    assert "1. 1.png: 1 classification, 1 localisation, 1 both, 1 duplicate, 1 background, 1 missed; 2 right" in text
    assert "2. 2.png: 1 missed; 0 right" in text
    assert "network 1.500 500.000" in text  # 1.5 seconds, 3 images


def test_numbers_are_plain_and_complete(reported):
    folder, _, numbers = reported
    assert "NaN" not in (folder / "report.json").read_text()
    assert numbers["facts"]["weights"] == "some.pth" and numbers["seconds"] == {"network": 1.5}
    assert [row["name"] for row in numbers["classes"]] == ["square", "disc"]
    assert numbers["classes"][0]["boxes"] == 4 and numbers["classes"][1]["recall"] is None
    assert numbers["confusion"]["counts"] == [[2, 0, 2], [1, 0, 1], [4, 0, 0]]
    assert numbers["precision_over_recall"]["classes_at_IoU_0.5"]["square"][0] == 0.5
    assert len(numbers["over_score_threshold"]["F1_of_classes"]["disc"]) == 101
    assert [row["errors"] for row in numbers["causes"]] == [1, 1, 1, 1, 1, 2]
    assert numbers["images"][1] == {"image_id": 2, "right": 0, "errors": {"missed": 1}, "file_name": "2.png"}


def test_worst_images_and_charts_can_be_read(reported):
    folder, _, _ = reported
    assert read_image(folder / "worst" / "01_1.jpg").shape[1] > 2 * LONGEST_SIDE
    assert all(math.prod(read_image(folder / f"{name}.png").shape) for name in CHARTS)


def test_names_are_escaped(tmp_path, make_project):
    names = ["<b>&\"'", "$5 </script>"]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    dataset = write_set(tmp_path, make_project(obj_list=names), [1], [truth(category_id=1)], categories)
    page, numbers = write(tmp_path / "eval", dataset, [found(category_id=2)], {"weights": "<i>"})
    assert all(name in page.text for name in (*names, "<i>"))
    assert [row["name"] for row in numbers["classes"]] == names


def test_charts_of_many_classes_merge_the_least_confused(tmp_path, make_project):
    names = [f"class {i}" for i in range(80)]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    annotations = [truth([12 * i, 0, 10, 10], category_id=i) for i in range(80)]
    results = [found([12 * i, 0, 10, 10], category_id=i // 2 * 2, confidence=0.5 + i / 200) for i in range(80)]
    dataset = write_set(tmp_path, make_project(obj_list=names), [1], annotations, categories)
    _, _, analysis = explain(dataset, results)
    figures = charts(analysis)
    shown = [label.get_text() for label in figures["confusion"].axes[0].get_yticklabels()]
    assert len(shown) == 26 and shown[-2:] == ["56 others", "background"]
    counts = [int(text.get_text()) for text in figures["confusion"].axes[0].texts]
    assert sum(counts) == analysis.confusion.sum() == 80
    assert len(figures["classes"].axes[0].get_yticklabels()) == 80
    for name in ("precision_recall", "f1"):
        assert [text.get_text() for text in figures[name].axes[1].get_legend().get_texts()] == ["mean"]


def test_charts_of_a_few_classes_name_their_curves(tmp_path, make_project):
    _, _, analysis = explain(*each_cause(tmp_path, make_project()))
    figures = charts(analysis)
    for name in ("precision_recall", "f1"):
        assert [text.get_text() for text in figures[name].axes[1].get_legend().get_texts()] == ["square", "disc"]


def test_detections_are_drawn_on_the_left_and_ground_truth_on_the_right(tmp_path, make_project):
    dataset = write_set(tmp_path, make_project(), [1], [truth([500, 40, 300, 100])])
    _, details, analysis = explain(dataset, [found([100, 40, 300, 100], confidence=0.75)])
    pair = draw_errors(dataset, details, analysis, 1)  # 1000 x 200 pixels, reduced to 640 x 128
    left, right = pair[:, :LONGEST_SIDE], pair[:, -LONGEST_SIDE:]
    assert left.shape == right.shape == (128, LONGEST_SIDE, 3)
    columns = [np.flatnonzero(half[60].any(axis=1)) for half in (left, right)]  # of a row that crosses the boxes
    assert (columns[0].min(), columns[0].max()) == pytest.approx((64, 256), abs=3)
    assert (columns[1].min(), columns[1].max()) == pytest.approx((320, 512), abs=3)


def test_labels_name_causes_and_missed_objects(tmp_path, make_project, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "efficientdet.evaluation.figures.draw_boxes", lambda image, *arguments: drawn.append(arguments) or image
    )
    dataset, results = each_cause(tmp_path, make_project())
    _, details, analysis = explain(dataset, results)
    draw_errors(dataset, details, analysis, 1)
    (_, _, detections), (_, class_ids, objects) = drawn
    assert detections == [  # errors last, so that they are drawn on top
        "square 0.10", "square 0.90", "square 0.50 both", "square 0.60 classification", "square 0.70 localisation",
        "square 0.80 duplicate", "square 0.95 background",
    ]  # fmt: skip
    assert objects == ["square", "square", "disc", "square", "disc missed"] and class_ids.tolist() == [0, 0, 1, 0, 1]


def test_every_report_has_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("efficientdet.evaluation.report.time.strftime", lambda form: "20261123-031500")
    name = "eval-val2017-efficientdet-d0_best-20261123-031500"
    for expected in (name, f"{name}-2", f"{name}-3"):
        folder = report_folder(tmp_path, "val2017", "logs/x/efficientdet-d0_best.pth")
        assert folder == tmp_path / expected
        folder.mkdir()


def test_failed_report_leaves_nothing(tmp_path, make_project, monkeypatch):
    monkeypatch.setattr("efficientdet.evaluation.report.charts", lambda analysis: {})
    monkeypatch.setattr("efficientdet.evaluation.report.number_sections", lambda *arguments: {})
    dataset, results = each_cause(tmp_path, make_project())
    dataset.annotated.image_path(1).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.png"):
        write(tmp_path / "logs" / "eval", dataset, results)
    assert list((tmp_path / "logs").iterdir()) == []
