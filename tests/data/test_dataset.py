"""From COCO files to samples: what is read, left out and refused, and how images are augmented."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientdet.data.augmentation import Augmentation
from efficientdet.data.dataset import CocoDataset, SampleKey
from efficientdet.data.transforms import Letterbox, horizontal_flip
from efficientdet.project import load_project
from utils.errors import InputError

CANVAS = (128, 128)


def gray(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def box(image_id, bbox, category_id=7, **fields) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **fields}


@pytest.fixture
def open_set(tmp_path, write_coco, make_project):
    """Return a function that writes a set and opens it."""

    def open_set(arrays, annotations=(), *categories, **options) -> CocoDataset:
        write_coco(tmp_path, "some", arrays, annotations, *categories)
        return CocoDataset(tmp_path, "some", make_project(), CANVAS, **options)

    return open_set


def shapes_set(shapes_project, set_name: str = "train", **options) -> CocoDataset:
    return CocoDataset(shapes_project.data, set_name, load_project(shapes_project.yml), CANVAS, **options)


def edit(shapes_project, change, set_name: str = "train") -> Path:
    """Apply `change` to the content of an annotation file."""
    path = shapes_project.data / "annotations" / f"instances_{set_name}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))
    return path


def assert_refused(shapes_project, *texts: str) -> None:
    with pytest.raises(InputError) as caught:
        shapes_set(shapes_project)
    for text in texts:
        assert text in str(caught.value)


# The content of a set.


def test_image_without_objects_has_empty_targets(open_set):
    sample = open_set({1: gray()})[0]
    assert sample.target.boxes.shape == (0, 4) and sample.target.boxes.dtype == np.float32
    assert sample.target.class_ids.shape == (0,) and sample.target.class_ids.dtype == np.int64


def test_sample_is_letterboxed_and_normalized(open_set):
    dataset = open_set({5: gray()}, [box(5, [8, 6, 16, 30])])
    sample = dataset[0]
    assert sample.image_id == 5
    assert sample.image.shape == (128, 128, 3) and sample.image.dtype == np.float32
    # 60 x 80 times 1.6 is 96 x 128.
    assert sample.letterbox == Letterbox(original=(60, 80), resized=(96, 128), canvas=(128, 128))
    np.testing.assert_allclose(sample.image[0, 0], [(100 / 255 - 0.485) / 0.229, -0.285014, -0.061525], atol=1e-5)
    assert (sample.image[96:] == 0).all()
    np.testing.assert_allclose(sample.target.boxes, [[12.8, 9.6, 38.4, 57.6]], rtol=1e-6)
    np.testing.assert_array_equal(sample.target.class_ids, [0])


def test_images_are_sorted_by_id(open_set):
    dataset = open_set({30: gray(), 4: gray(), 100: gray()})
    assert dataset.image_ids == [4, 30, 100]
    assert len(dataset) == 3
    assert [dataset[i].image_id for i in range(3)] == [4, 30, 100]


@pytest.mark.parametrize("ids", [(3, 7), (0, 1), (1, 2), ("3", "7"), (90, 500)])
def test_categories_of_any_ids_become_classes_by_name(open_set, ids):
    disc, square = ids
    categories = [{"id": disc, "name": "disc"}, {"id": square, "name": "square"}]
    annotations = [box(1, [0, 0, 9, 9], disc), box(1, [5, 5, 9, 9], square), box(1, [2, 2, 9, 9], disc)]
    dataset = open_set({1: gray()}, annotations, categories)
    np.testing.assert_array_equal(dataset.target(1).class_ids, [1, 0, 1])
    assert dataset.category_ids == {1: disc, 0: square}


@pytest.mark.parametrize("written", [(7, "7"), ("7", 7)])
def test_category_ids_may_be_text_in_one_place_and_numbers_in_another(open_set, written):
    declared, used = written
    dataset = open_set({1: gray()}, [box(1, [0, 0, 9, 9], used)], [{"id": declared, "name": "disc"}])
    np.testing.assert_array_equal(dataset.target(1).class_ids, [1])
    assert dataset.category_ids == {1: declared}


@pytest.mark.parametrize("written", [("5", "5"), (5, "5"), ("5", 5)])
def test_boxes_of_an_image_whose_id_is_text_are_kept_or_refused(open_set, written):
    declared, used = written
    try:
        dataset = open_set({declared: gray()}, [box(used, [0, 0, 9, 9])])
    except InputError as error:
        assert declared != used and "image" in str(error)
    else:
        assert len(dataset.target(declared).boxes) == 1, "the box was silently dropped"


def test_text_ids_are_kept(open_set):
    dataset = open_set({"b": gray(), "a": gray()}, [box("b", [0, 0, 9, 9])])
    assert dataset.image_ids == ["a", "b"]
    assert (len(dataset.target("a").boxes), len(dataset.target("b").boxes)) == (0, 1)


def test_crowd_regions_and_boxes_below_a_pixel_are_not_learned(open_set):
    annotations = [
        box(1, [1, 1, 20, 20], iscrowd=1),
        box(1, [2, 2, 0.99, 20]),
        box(1, [3, 3, 20, 0.99]),
        box(1, [4, 4, 0, 0]),
        box(1, [5, 5, -3, 8]),
        box(1, [6, 6, 1, 1]),
        box(1, [7, 7, 10, 20], iscrowd=0),
    ]
    target = open_set({1: gray()}, annotations).target(1)
    np.testing.assert_array_equal(target.boxes, [[6, 6, 7, 7], [7, 7, 17, 27]])


def test_optional_fields_may_be_absent(open_set):
    assert len(open_set({1: gray()}, [box(1, [0, 0, 9, 9])]).target(1).boxes) == 1


def test_max_images_keeps_the_first_by_id(open_set):
    dataset = open_set({30: gray(), 4: gray(), 100: gray()}, [box(100, [0, 0, 9, 9])], max_images=2)
    assert dataset.image_ids == [4, 30]


def test_images_may_be_in_subfolders(shapes_project):
    train = shapes_project.data / "train"
    (train / "inner").mkdir()
    (train / "000011.jpg").rename(train / "inner" / "000011.jpg")
    edit(shapes_project, lambda content: content["images"][0].update(file_name="inner/000011.jpg"))
    assert shapes_set(shapes_project).load_image(11).shape == (120, 160, 3)


@pytest.mark.parametrize("annotated", ["as seen", "as stored", "not at all"])
def test_orientation_agrees_with_the_annotation(tmp_path, write_coco, make_project, annotated):
    stored = np.zeros((60, 80, 3), np.uint8)
    stored[:20, :40] = 255  # stored top left, seen top right after the clockwise rotation
    path = write_coco(tmp_path, "some", {1: stored})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "some" / "turned.jpg", exif=exif)
    content = json.loads(path.read_text())
    entry = {"id": 1, "file_name": "turned.jpg"}
    if annotated != "not at all":
        entry["height"], entry["width"] = (80, 60) if annotated == "as seen" else (60, 80)
    path.write_text(json.dumps({**content, "images": [entry]}))

    image = CocoDataset(tmp_path, "some", make_project(), CANVAS).load_image(1)
    if annotated == "as stored":
        assert image.shape == (60, 80, 3) and image[5, 5, 0] > 200 and image[5, 75, 0] < 50
    else:
        assert image.shape == (80, 60, 3) and image[5, 55, 0] > 200 and image[5, 5, 0] < 50


# What is refused.


def test_empty_list_of_images_is_refused(open_set):
    with pytest.raises(InputError, match=r"instances_some\.json"):
        open_set({})


def test_missing_annotation_file_is_named(shapes_project):
    path = shapes_project.data / "annotations" / "instances_train.json"
    path.unlink()
    assert_refused(shapes_project, str(path))


def test_missing_folder_of_images_is_named(shapes_project):
    (shapes_project.data / "train").rename(shapes_project.data / "elsewhere")
    assert_refused(shapes_project, str(shapes_project.data / "train"))


def test_missing_image_is_named_with_the_count(shapes_project):
    (shapes_project.data / "train" / "000021.jpg").unlink()
    (shapes_project.data / "train" / "000022.jpg").unlink()
    path = shapes_project.data / "train" / "000021.jpg"
    assert_refused(shapes_project, str(path), "image 21", "2 missing images", "efficientdet.check")


def test_missing_image_beyond_max_images_does_not_matter(shapes_project):
    (shapes_project.data / "train" / "000030.jpg").unlink()
    assert len(shapes_set(shapes_project, max_images=5)) == 5


def test_invalid_json_is_reported_with_its_line(shapes_project):
    path = shapes_project.data / "annotations" / "instances_train.json"
    path.write_text('{"images": [],\n "annotations": [,]}')
    assert_refused(shapes_project, str(path), "line 2")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"3", b"{}", b'{"images": 1}'])
def test_file_that_is_not_coco_is_refused(shapes_project, content):
    path = shapes_project.data / "annotations" / "instances_train.json"
    path.write_bytes(content)
    assert_refused(shapes_project, str(path))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, [3], [{}], [None]])
def test_unusable_lists_are_refused_with_their_key(shapes_project, key, value):
    edit(shapes_project, lambda content: {**content, key: value})
    assert_refused(shapes_project, "instances_train.json", f"'{key}'")


@pytest.mark.parametrize(
    ("key", "field"),
    [("images", "file_name"), ("images", "id"), ("categories", "name"), ("annotations", "bbox")]
    + [("annotations", "image_id"), ("annotations", "category_id")],
)
def test_absent_field_is_named(shapes_project, key, field):
    edit(shapes_project, lambda content: content[key][1].pop(field) and None)
    assert_refused(shapes_project, "instances_train.json", f"'{field}'", f"'{key}'")


def test_annotation_of_an_unknown_image_is_named(shapes_project):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, image_id=555))
    assert_refused(shapes_project, "instances_train.json", "annotation 77", "555")


def test_annotation_of_an_unknown_category_is_named(shapes_project):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, category_id=4))
    assert_refused(shapes_project, "instances_train.json", "annotation 77", "category_id 4")


@pytest.mark.parametrize(
    "bbox", [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, None], {}, "1 2 3 4", None, [1, 2, float("nan"), 4]]
)
def test_malformed_bbox_is_named(shapes_project, bbox):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, bbox=bbox))
    assert_refused(shapes_project, "instances_train.json", "annotation 77", "bbox")


def test_bbox_that_overflows_is_refused(shapes_project):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, bbox=[0, 0, 10**400, 4]))
    assert_refused(shapes_project, "annotation 77", "bbox")


@pytest.mark.parametrize("key", ["images", "categories"])
def test_duplicate_ids_are_refused(shapes_project, key):
    edit(shapes_project, lambda content: content[key][1].update(id=content[key][0]["id"]))
    entry = {"images": "image 11", "categories": "category 3"}[key]
    assert_refused(shapes_project, "instances_train.json", entry)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_ids_that_differ_only_in_type_are_refused(shapes_project, key):
    # 11 and "11" are the same id to the annotations that refer to it.
    edit(shapes_project, lambda content: content[key][1].update(id=str(content[key][0]["id"])))
    assert_refused(shapes_project, "instances_train.json", "id")


@pytest.mark.parametrize("key", ["images", "categories"])
@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1.5])
def test_id_of_another_type_is_refused(shapes_project, key, value):
    edit(shapes_project, lambda content: content[key][0].update(id=value))
    assert_refused(shapes_project, "instances_train.json", "id")


def test_category_that_the_project_lacks_is_refused(shapes_project):
    edit(shapes_project, lambda content: content["categories"][0].update(name="star"))
    assert_refused(shapes_project, "'star'", "drawn.yml", "instances_train.json")


def test_size_that_contradicts_the_image_is_refused_on_loading(shapes_project):
    edit(shapes_project, lambda content: content["images"][0].update(height=100))
    dataset = shapes_set(shapes_project)
    with pytest.raises(InputError, match=r"000011\.jpg .*160 x 120.*160 x 100"):
        dataset[0]


# Augmentation.


def test_plain_index_returns_the_image_without_augmentation(shapes_project):
    dataset = shapes_set(shapes_project)
    np.testing.assert_array_equal(dataset[1].image, dataset[1].image)
    np.testing.assert_array_equal(dataset.target(12).boxes[:, :2], [[15, 38], [109, 69]])
    np.testing.assert_allclose(dataset[1].target.boxes[0], np.array([15, 38, 68, 91]) * 0.8, rtol=1e-6)


def flips(dataset: CocoDataset, epoch: int) -> list[bool]:
    """Return for each image whether it is flipped in that epoch."""
    result = []
    for index, image_id in enumerate(dataset.image_ids):
        sample, plain = dataset[SampleKey(index, epoch)], dataset[index]
        mirrored = horizontal_flip(dataset.load_image(image_id), dataset.target(image_id))[1]
        flipped = not np.array_equal(sample.image, plain.image)
        expected = mirrored if flipped else dataset.target(image_id)
        np.testing.assert_allclose(sample.target.boxes, plain.letterbox.boxes_to_canvas(expected.boxes), atol=1e-4)
        result.append(flipped)
    return result


def test_flip_depends_only_on_seed_epoch_and_index(shapes_project):
    dataset = shapes_set(shapes_project, seed=3)
    first = [flips(dataset, epoch) for epoch in range(4)]
    assert [flips(dataset, epoch) for epoch in reversed(range(4))] == first[::-1]
    assert [flips(shapes_set(shapes_project, seed=3), epoch) for epoch in range(4)] == first
    assert len({tuple(epoch) for epoch in first}) > 1
    assert len(set(first[0] + first[1])) == 2
    assert [flips(shapes_set(shapes_project, seed=4), epoch) for epoch in range(4)] != first


def test_scale_of_one_changes_nothing(shapes_project):
    plain, scaled = shapes_set(shapes_project), shapes_set(shapes_project, augmentation=Augmentation(1.0, 1.0))
    for epoch in range(3):
        some, other = plain[SampleKey(1, epoch)], scaled[SampleKey(1, epoch)]
        assert some.letterbox == other.letterbox == Letterbox((120, 160), (96, 128), CANVAS)
        np.testing.assert_array_equal(some.image, other.image)


def test_image_scaled_by_a_half(shapes_project):
    dataset = shapes_set(shapes_project, augmentation=Augmentation(0.5, 0.5))
    # Image 12, 120 x 160: 96 x 128 fill the canvas, half of that is 0.4 of the image.
    boxes = dataset.target(12).boxes
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = 160 - boxes[:, [2, 0]]
    seen = set()
    for epoch in range(8):
        sample = dataset[SampleKey(1, epoch)]
        assert sample.letterbox == Letterbox(original=(120, 160), resized=(48, 64), canvas=CANVAS)
        assert (sample.image[48:] == 0).all() and (sample.image[:, 64:] == 0).all()
        assert (sample.image[:48, :64] != 0).any(axis=2).all()
        flipped = not np.allclose(sample.target.boxes, boxes * 0.4, atol=1e-4)
        np.testing.assert_allclose(sample.target.boxes, (mirrored if flipped else boxes) * 0.4, atol=1e-4)
        np.testing.assert_array_equal(sample.target.class_ids, dataset.target(12).class_ids)
        seen.add(flipped)
    assert seen == {True, False}


def test_image_scaled_by_two_is_cropped_to_the_canvas(shapes_project):
    dataset = shapes_set(shapes_project, augmentation=Augmentation(2.0, 2.0))
    # 120 x 160 scaled by 1.6 is 192 x 256; 128 x 128 of that are 80 x 80 of the image.
    for epoch in range(8):
        sample = dataset[SampleKey(1, epoch)]
        assert sample.letterbox == Letterbox(original=(80, 80), resized=CANVAS, canvas=CANVAS)
        assert sample.image.shape == (128, 128, 3) and (sample.image != 0).any(axis=2).all()
        assert sample.target.boxes.shape == (len(sample.target.class_ids), 4)
        assert (sample.target.boxes >= 0).all() and (sample.target.boxes <= 128).all()
        assert (sample.target.boxes[:, 2:] > sample.target.boxes[:, :2]).all()


def test_evaluation_is_not_scaled(shapes_project):
    plain, scaled = shapes_set(shapes_project), shapes_set(shapes_project, augmentation=Augmentation(0.1, 2.0))
    for index in range(3):
        assert scaled[index].letterbox == plain[index].letterbox
        np.testing.assert_array_equal(scaled[index].image, plain[index].image)
        np.testing.assert_array_equal(scaled[index].target.boxes, plain[index].target.boxes)


def test_scaling_depends_only_on_seed_epoch_and_index(shapes_project):
    def drawn(seed: int, keys, **options) -> dict[SampleKey, tuple]:
        dataset = shapes_set(shapes_project, seed=seed, augmentation=Augmentation(0.1, 2.0), **options)
        samples = {key: dataset[key] for key in keys}
        return {
            key: (sample.letterbox, sample.image.tobytes(), sample.target.boxes.tobytes())
            for key, sample in samples.items()
        }

    keys = [SampleKey(index, epoch) for epoch in range(3) for index in range(4)]
    first = drawn(3, keys)
    assert len({letterbox for letterbox, *_ in first.values()}) == len(keys)
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn(3, keys[::-1], max_images=4) == first
    other_seed = drawn(4, keys)
    assert all(other_seed[key] != first[key] for key in keys)
