"""COCO files -> samples -> batches: what is read, what is left out, what is refused, and in which order it comes."""

import gc
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientdet.data.dataset import CocoDataset, SampleKey
from efficientdet.data.loader import BatchLoader, EpochSampler, collate
from efficientdet.data.transforms import Letterbox, horizontal_flip
from efficientdet.project import load_project
from efficientdet.structures import PADDING_CLASS
from utils.errors import InputError

CANVAS = (128, 128)


def grey(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def box(image_id, bbox, category_id=7, **fields) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **fields}


@pytest.fixture
def open_set(tmp_path, write_coco, make_project):
    """A function that writes a set and opens it."""

    def open_set(pictures, annotations=(), *categories, **options) -> CocoDataset:
        write_coco(tmp_path, "some", pictures, annotations, *categories)
        return CocoDataset(tmp_path, "some", make_project(), CANVAS, **options)

    return open_set


def shapes_set(shapes_project, set_name: str = "train", **options) -> CocoDataset:
    return CocoDataset(shapes_project.data, set_name, load_project(shapes_project.yml), CANVAS, **options)


def edit(shapes_project, change, set_name: str = "train") -> Path:
    """Let `change` alter the content of an annotation file."""
    path = shapes_project.data / "annotations" / f"instances_{set_name}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))
    return path


def refusal(shapes_project, *texts: str) -> str:
    """The InputError of opening the training set, which holds `texts`."""
    with pytest.raises(InputError) as caught:
        shapes_set(shapes_project)
    for text in texts:
        assert text in str(caught.value)
    return str(caught.value)


# The content of a set.


def test_image_without_objects_has_empty_targets(open_set):
    sample = open_set({1: grey()})[0]
    assert sample.target.boxes.shape == (0, 4) and sample.target.boxes.dtype == np.float32
    assert sample.target.class_ids.shape == (0,) and sample.target.class_ids.dtype == np.int64


def test_sample_is_letterboxed_and_normalised(open_set):
    dataset = open_set({5: grey()}, [box(5, [8, 6, 16, 30])])
    sample = dataset[0]
    assert sample.image_id == 5
    assert sample.image.shape == (128, 128, 3) and sample.image.dtype == np.float32
    # 60 x 80 enlarged by 1.6 is 96 x 128.
    assert sample.letterbox == Letterbox(picture=(60, 80), resized=(96, 128), canvas=(128, 128))
    np.testing.assert_allclose(sample.image[0, 0], [(100 / 255 - 0.485) / 0.229, -0.285014, -0.061525], atol=1e-5)
    assert (sample.image[96:] == 0).all()
    np.testing.assert_allclose(sample.target.boxes, [[12.8, 9.6, 38.4, 57.6]], rtol=1e-6)
    np.testing.assert_array_equal(sample.target.class_ids, [0])


def test_images_come_in_the_order_of_their_ids(open_set):
    dataset = open_set({30: grey(), 4: grey(), 100: grey()})
    assert dataset.image_ids == [4, 30, 100]
    assert len(dataset) == 3
    assert [dataset[i].image_id for i in range(3)] == [4, 30, 100]


@pytest.mark.parametrize("ids", [(3, 7), (0, 1), (1, 2), ("3", "7"), (90, 500)])
def test_categories_of_any_ids_become_classes_by_name(open_set, ids):
    disc, square = ids
    categories = [{"id": disc, "name": "disc"}, {"id": square, "name": "square"}]
    annotations = [box(1, [0, 0, 9, 9], disc), box(1, [5, 5, 9, 9], square), box(1, [2, 2, 9, 9], disc)]
    dataset = open_set({1: grey()}, annotations, categories)
    np.testing.assert_array_equal(dataset.target(1).class_ids, [1, 0, 1])
    assert dataset.category_ids == {1: disc, 0: square}


@pytest.mark.parametrize("written", [(7, "7"), ("7", 7)])
def test_category_ids_may_be_digits_on_one_side_and_numbers_on_the_other(open_set, written):
    declared, used = written
    dataset = open_set({1: grey()}, [box(1, [0, 0, 9, 9], used)], [{"id": declared, "name": "disc"}])
    np.testing.assert_array_equal(dataset.target(1).class_ids, [1])
    assert dataset.category_ids == {1: declared}


@pytest.mark.parametrize("written", [("5", "5"), (5, "5"), ("5", 5)])
def test_boxes_of_an_image_whose_id_is_written_as_digits_are_kept_or_refused(open_set, written):
    declared, used = written
    try:
        dataset = open_set({declared: grey()}, [box(used, [0, 0, 9, 9])])
    except InputError as error:
        assert declared != used and "image" in str(error)
    else:
        assert len(dataset.target(declared).boxes) == 1, "the box was dropped without a word"


def test_text_ids_are_kept(open_set):
    dataset = open_set({"b": grey(), "a": grey()}, [box("b", [0, 0, 9, 9])])
    assert dataset.image_ids == ["a", "b"]
    assert (len(dataset.target("a").boxes), len(dataset.target("b").boxes)) == (0, 1)


def test_crowd_regions_and_boxes_below_a_pixel_are_left_out(open_set):
    annotations = [
        box(1, [1, 1, 20, 20], iscrowd=1),
        box(1, [2, 2, 0.99, 20]),
        box(1, [3, 3, 20, 0.99]),
        box(1, [4, 4, 0, 0]),
        box(1, [5, 5, -3, 8]),
        box(1, [6, 6, 1, 1]),
        box(1, [7, 7, 10, 20], iscrowd=0),
    ]
    target = open_set({1: grey()}, annotations).target(1)
    np.testing.assert_array_equal(target.boxes, [[6, 6, 7, 7], [7, 7, 17, 27]])


def test_fields_that_training_does_not_need_may_be_absent(open_set):
    assert len(open_set({1: grey()}, [box(1, [0, 0, 9, 9])]).target(1).boxes) == 1


def test_max_images_takes_the_first_by_id(open_set):
    dataset = open_set({30: grey(), 4: grey(), 100: grey()}, [box(100, [0, 0, 9, 9])], max_images=2)
    assert dataset.image_ids == [4, 30]


def test_images_may_lie_in_folders_of_the_set(shapes_project):
    train = shapes_project.data / "train"
    (train / "inner").mkdir()
    (train / "000011.jpg").rename(train / "inner" / "000011.jpg")
    edit(shapes_project, lambda content: content["images"][0].update(file_name="inner/000011.jpg"))
    assert shapes_set(shapes_project).picture(11).shape == (120, 160, 3)


@pytest.mark.parametrize("annotated", ["as seen", "as stored", "not at all"])
def test_orientation_of_a_image_agrees_with_its_annotation(tmp_path, write_coco, make_project, annotated):
    stored = np.zeros((60, 80, 3), np.uint8)
    stored[:20, :40] = 255  # stored at the top left, seen at the top right after the turn to the right
    path = write_coco(tmp_path, "some", {1: stored})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "some" / "turned.jpg", exif=exif)
    content = json.loads(path.read_text())
    entry = {"id": 1, "file_name": "turned.jpg"}
    if annotated != "not at all":
        entry["height"], entry["width"] = (80, 60) if annotated == "as seen" else (60, 80)
    path.write_text(json.dumps({**content, "images": [entry]}))

    picture = CocoDataset(tmp_path, "some", make_project(), CANVAS).picture(1)
    if annotated == "as stored":
        assert picture.shape == (60, 80, 3) and picture[5, 5, 0] > 200 and picture[5, 75, 0] < 50
    else:
        assert picture.shape == (80, 60, 3) and picture[5, 55, 0] > 200 and picture[5, 5, 0] < 50


# What is refused.


def test_empty_list_of_images_is_refused(open_set):
    with pytest.raises(InputError, match=r"instances_some\.json lists no images"):
        open_set({})


def test_missing_annotation_file_is_named(shapes_project):
    path = shapes_project.data / "annotations" / "instances_train.json"
    path.unlink()
    refusal(shapes_project, str(path))


def test_missing_folder_of_images_is_named(shapes_project):
    (shapes_project.data / "train").rename(shapes_project.data / "elsewhere")
    refusal(shapes_project, str(shapes_project.data / "train"))


def test_missing_image_is_named_with_the_count(shapes_project):
    (shapes_project.data / "train" / "000021.jpg").unlink()
    (shapes_project.data / "train" / "000022.jpg").unlink()
    picture = shapes_project.data / "train" / "000021.jpg"
    refusal(shapes_project, f"{picture}: image 21 is missing", "the first of 2 missing images", "efficientdet.check")


def test_missing_image_beyond_max_images_is_no_matter(shapes_project):
    (shapes_project.data / "train" / "000030.jpg").unlink()
    assert len(shapes_set(shapes_project, max_images=5)) == 5


def test_invalid_json_is_told_with_its_line(shapes_project):
    path = shapes_project.data / "annotations" / "instances_train.json"
    path.write_text('{"images": [],\n "annotations": [,]}')
    refusal(shapes_project, f"{path}: line 2 ")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"3", b"{}", b'{"images": 1}'])
def test_file_of_something_else_is_refused(shapes_project, content):
    path = shapes_project.data / "annotations" / "instances_train.json"
    path.write_bytes(content)
    refusal(shapes_project, str(path))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, [3], [{}], [None]])
def test_lists_of_something_else_are_refused_with_their_key(shapes_project, key, value):
    edit(shapes_project, lambda content: {**content, key: value})
    refusal(shapes_project, "instances_train.json", f"'{key}'")


@pytest.mark.parametrize(
    ("key", "field"),
    [("images", "file_name"), ("images", "id"), ("categories", "name"), ("annotations", "bbox")]
    + [("annotations", "image_id"), ("annotations", "category_id")],
)
def test_absent_field_is_named(shapes_project, key, field):
    edit(shapes_project, lambda content: content[key][1].pop(field) and None)
    refusal(shapes_project, "instances_train.json", f"'{field}'", f"'{key}'")


def test_annotation_of_an_unknown_image_is_named(shapes_project):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, image_id=555))
    refusal(shapes_project, "instances_train.json", "annotation 77", "555")


def test_annotation_of_an_unknown_category_is_named(shapes_project):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, category_id=4))
    refusal(shapes_project, "instances_train.json", "annotation 77", "category_id 4")


@pytest.mark.parametrize(
    "bbox", [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, None], {}, "1 2 3 4", None, [1, 2, float("nan"), 4]]
)
def test_malformed_bbox_is_named(shapes_project, bbox):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, bbox=bbox))
    refusal(shapes_project, "instances_train.json", "annotation 77", "bbox")


def test_bbox_of_a_number_beyond_floats_is_refused(shapes_project):
    edit(shapes_project, lambda content: content["annotations"][2].update(id=77, bbox=[0, 0, 10**400, 4]))
    refusal(shapes_project, "annotation 77", "bbox")


@pytest.mark.parametrize("key", ["images", "categories"])
def test_two_entries_of_one_id_are_refused(shapes_project, key):
    edit(shapes_project, lambda content: content[key][1].update(id=content[key][0]["id"]))
    entry = {"images": "image 11", "categories": "category 3"}[key]
    refusal(shapes_project, f"instances_train.json: {entry} has the id of an earlier entry")


@pytest.mark.parametrize("key", ["images", "categories"])
def test_two_entries_whose_ids_differ_in_their_quotes_alone_are_refused(shapes_project, key):
    # An annotation's id, which may have quotes or none, could not tell which of them is meant.
    edit(shapes_project, lambda content: content[key][1].update(id=str(content[key][0]["id"])))
    refusal(shapes_project, "instances_train.json", "id")


@pytest.mark.parametrize("key", ["images", "categories"])
@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1.5])
def test_id_that_is_no_number_or_text_is_refused(shapes_project, key, value):
    edit(shapes_project, lambda content: content[key][0].update(id=value))
    refusal(shapes_project, "instances_train.json", "id")


def test_category_that_the_project_lacks_is_refused(shapes_project):
    edit(shapes_project, lambda content: content["categories"][0].update(name="star"))
    refusal(shapes_project, "'star'", "drawn.yml", "instances_train.json")


def test_size_that_contradicts_the_image_is_refused_when_it_is_read(shapes_project):
    edit(shapes_project, lambda content: content["images"][0].update(height=100))
    dataset = shapes_set(shapes_project)
    with pytest.raises(InputError, match=r"000011\.jpg is 160 x 120 .*160 x 100"):
        dataset[0]


# Augmentation and order.


def test_index_alone_gives_the_image_as_it_is(shapes_project):
    dataset = shapes_set(shapes_project)
    np.testing.assert_array_equal(dataset[1].image, dataset[1].image)
    np.testing.assert_array_equal(dataset.target(12).boxes[:, :2], [[15, 38], [109, 69]])
    np.testing.assert_allclose(dataset[1].target.boxes[0], np.array([15, 38, 68, 91]) * 0.8, rtol=1e-6)


def flips(dataset: CocoDataset, epoch: int) -> list[bool]:
    """For each image whether it comes as its mirror image in that epoch."""
    result = []
    for index, image_id in enumerate(dataset.image_ids):
        sample, plain = dataset[SampleKey(index, epoch)], dataset[index]
        mirrored = horizontal_flip(dataset.picture(image_id), dataset.target(image_id))[1]
        flipped = not np.array_equal(sample.image, plain.image)
        expected = mirrored if flipped else dataset.target(image_id)
        np.testing.assert_allclose(sample.target.boxes, plain.letterbox.boxes_to_canvas(expected.boxes), atol=1e-4)
        result.append(flipped)
    return result


def test_augmentation_depends_on_seed_epoch_and_index_alone(shapes_project):
    dataset = shapes_set(shapes_project, seed=3)
    first = [flips(dataset, epoch) for epoch in range(4)]
    assert [flips(dataset, epoch) for epoch in reversed(range(4))] == first[::-1]
    assert [flips(shapes_set(shapes_project, seed=3), epoch) for epoch in range(4)] == first
    assert len({tuple(epoch) for epoch in first}) > 1
    assert len(set(first[0] + first[1])) == 2
    assert [flips(shapes_set(shapes_project, seed=4), epoch) for epoch in range(4)] != first


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.1, 2.0)])
def test_batches_are_the_same_with_and_without_workers(shapes_project, scale_range):
    runs = []
    for num_workers in (0, 2):
        dataset = shapes_set(shapes_project, seed=1, scale_range=scale_range)
        sampler = EpochSampler(len(dataset), seed=1)
        loader = BatchLoader(dataset, 2, num_workers, sampler)
        batches = []
        for sampler.epoch in range(2):
            batches += list(loader)
        runs.append(batches)
    assert len(runs[0]) == len(runs[1]) == 6
    for alone, shared in zip(*runs):
        assert alone.image_ids == shared.image_ids and alone.letterboxes == shared.letterboxes
        assert torch.equal(alone.images, shared.images)
        assert all(map(torch.equal, alone.targets, shared.targets))


def test_scale_of_one_is_no_augmentation(shapes_project):
    plain, scaled = shapes_set(shapes_project), shapes_set(shapes_project, scale_range=(1.0, 1.0))
    for epoch in range(3):
        some, other = plain[SampleKey(1, epoch)], scaled[SampleKey(1, epoch)]
        assert some.letterbox == other.letterbox == Letterbox((120, 160), (96, 128), CANVAS)
        np.testing.assert_array_equal(some.image, other.image)


def test_image_scaled_by_a_half(shapes_project):
    dataset = shapes_set(shapes_project, scale_range=(0.5, 0.5))
    # Image 12, 120 x 160: 96 x 128 fill the canvas, half of that is 0.4 of the image.
    boxes = dataset.target(12).boxes
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = 160 - boxes[:, [2, 0]]
    seen = set()
    for epoch in range(8):
        sample = dataset[SampleKey(1, epoch)]
        assert sample.letterbox == Letterbox(picture=(120, 160), resized=(48, 64), canvas=CANVAS)
        assert (sample.image[48:] == 0).all() and (sample.image[:, 64:] == 0).all()
        assert (sample.image[:48, :64] != 0).any(axis=2).all()
        flipped = not np.allclose(sample.target.boxes, boxes * 0.4, atol=1e-4)
        np.testing.assert_allclose(sample.target.boxes, (mirrored if flipped else boxes) * 0.4, atol=1e-4)
        np.testing.assert_array_equal(sample.target.class_ids, dataset.target(12).class_ids)
        seen.add(flipped)
    assert seen == {True, False}


def test_image_scaled_by_two_is_cropped_to_the_canvas(shapes_project):
    dataset = shapes_set(shapes_project, scale_range=(2.0, 2.0))
    # 120 x 160 scaled by 1.6 is 192 x 256; 128 x 128 of that are 80 x 80 of the image.
    for epoch in range(8):
        sample = dataset[SampleKey(1, epoch)]
        assert sample.letterbox == Letterbox(picture=(80, 80), resized=CANVAS, canvas=CANVAS)
        assert sample.image.shape == (128, 128, 3) and (sample.image != 0).any(axis=2).all()
        assert sample.target.boxes.shape == (len(sample.target.class_ids), 4)
        assert (sample.target.boxes >= 0).all() and (sample.target.boxes <= 128).all()
        assert (sample.target.boxes[:, 2:] > sample.target.boxes[:, :2]).all()


def test_evaluation_is_not_scaled(shapes_project):
    plain, scaled = shapes_set(shapes_project), shapes_set(shapes_project, scale_range=(0.1, 2.0))
    for index in range(3):
        assert scaled[index].letterbox == plain[index].letterbox
        np.testing.assert_array_equal(scaled[index].image, plain[index].image)
        np.testing.assert_array_equal(scaled[index].target.boxes, plain[index].target.boxes)


def test_scaling_depends_on_seed_epoch_and_image_alone(shapes_project):
    def drawn(seed: int, keys, **options) -> dict[SampleKey, tuple]:
        dataset = shapes_set(shapes_project, seed=seed, scale_range=(0.1, 2.0), **options)
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


def test_sampler_of_nothing_is_empty():
    assert list(EpochSampler(0, seed=0)) == []


def test_sampler_gives_every_image_once_in_an_order_of_the_epoch():
    sampler = EpochSampler(20, seed=5)
    orders = []
    for sampler.epoch in range(3):
        keys = list(sampler)
        assert all(key.epoch == sampler.epoch for key in keys)
        orders.append([key.index for key in keys])
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    again, other = EpochSampler(20, seed=5), EpochSampler(20, seed=6)
    assert [key.index for key in again] == orders[0] != [key.index for key in other]


def test_sampler_goes_on_in_the_middle_of_an_epoch():
    sampler = EpochSampler(10, seed=0)
    sampler.epoch = 2
    whole = list(sampler)
    sampler.start = 4
    assert list(sampler) == whole[4:]
    assert len(sampler) == 6


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("length", "start"), [(0, 0), (3, 0), (8, 8), (11, 8)])
def test_shard_of_less_than_a_step_is_empty(length, start, rank):
    sampler = EpochSampler(length, seed=0, step_images=4, rank=rank, world_size=2)
    sampler.start = start
    assert list(sampler) == [] and len(sampler) == 0


@pytest.mark.parametrize(
    ("start", "shares"),
    [
        (0, [[0, 1, 4, 5], [2, 3, 6, 7]]),  # of 11 images, the last three make no step
        (4, [[4, 5], [6, 7]]),
        (3, [[3, 4, 7, 8], [5, 6, 9, 10]]),  # the last one is just complete
        (7, [[7, 8], [9, 10]]),
    ],
)
def test_shards_share_every_step(start, shares):
    alone = EpochSampler(11, seed=2)
    alone.epoch = 5
    order = list(alone)
    for rank, share in enumerate(shares):
        sampler = EpochSampler(11, seed=2, step_images=4, rank=rank, world_size=2)
        sampler.epoch, sampler.start = 5, start
        assert list(sampler) == [order[position] for position in share]
        assert len(sampler) == len(share)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_processes_together_see_what_one_would(world_size):
    alone = list(EpochSampler(40, seed=1))
    shards = [list(EpochSampler(40, 1, 6, rank, world_size)) for rank in range(world_size)]
    share = 6 // world_size
    for step in range(6):  # 36 of the 40 images
        together = [key for shard in shards for key in shard[step * share : (step + 1) * share]]
        assert together == alone[step * 6 : (step + 1) * 6]
    assert all(len(shard) == 6 * share for shard in shards)


@pytest.mark.parametrize("start", [0, 2])
def test_two_processes_load_the_batches_of_one(shapes_project, start):
    def loaded(batch_size: int, *place: int) -> list:
        dataset = shapes_set(shapes_project, seed=1, scale_range=(0.1, 2.0))
        sampler = EpochSampler(len(dataset), 1, 4, *place)
        sampler.epoch, sampler.start = 2, start
        loader = BatchLoader(dataset, batch_size, 0, sampler)
        batches = list(loader)
        assert loader.num_images == batch_size * len(batches)
        return batches

    (whole,), (first,), (second,) = loaded(4), loaded(2, 0, 2), loaded(2, 1, 2)
    assert first.image_ids + second.image_ids == whole.image_ids
    assert first.letterboxes + second.letterboxes == whole.letterboxes
    assert torch.equal(torch.cat([first.images, second.images]), whole.images)


# Batches.


def test_batch_without_any_object_has_no_room_for_one(shapes_project):
    batch = collate([shapes_set(shapes_project)[2]] * 2)
    assert batch.targets.boxes.shape == (2, 0, 4) and batch.targets.class_ids.shape == (2, 0)
    assert batch.targets.class_ids.dtype == torch.int64


def test_targets_are_padded_to_the_most_objects(shapes_project):
    dataset = shapes_set(shapes_project)
    batch = collate([dataset[0], dataset[1], dataset[2]])
    assert batch.image_ids == [11, 12, 15]
    assert batch.images.shape == (3, 3, 128, 128) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.class_ids.tolist() == [[0, PADDING_CLASS], [1, 0], [PADDING_CLASS] * 2]
    np.testing.assert_array_equal(batch.targets.boxes[1], dataset[1].target.boxes)
    assert (batch.targets.boxes[2] == 0).all()
    np.testing.assert_array_equal(batch.images[1].permute(1, 2, 0), dataset[1].image)


def test_batch_moves_to_a_device_whole(shapes_project):
    batch = collate([shapes_set(shapes_project)[0]])
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.images, *moved.targets)} == {"meta"}
    assert (moved.image_ids, moved.letterboxes) == (batch.image_ids, batch.letterboxes)


@pytest.mark.parametrize(("images", "left"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_first_samples_of_a_batch(shapes_project, images, left):
    dataset = shapes_set(shapes_project)
    batch = collate([dataset[0], dataset[1], dataset[2]])
    part = batch.first(images)
    assert part.image_ids == [11, 12, 15][:left] and part.letterboxes == batch.letterboxes[:left]
    assert part.images.shape == (left, 3, 128, 128) and torch.equal(part.images, batch.images[:left])
    assert part.targets.boxes.shape == (left, 2, 4) and part.targets.class_ids.shape == (left, 2)
    assert part.targets.class_ids.tolist() == [[0, PADDING_CLASS], [1, 0], [PADDING_CLASS] * 2][:left]
    assert torch.equal(part.targets.boxes, batch.targets.boxes[:left])
    assert batch.image_ids == [11, 12, 15] and len(batch.images) == 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_of_no_images_at_all(shapes_project, num_workers):
    # The second process's share of a single image.
    loader = BatchLoader(shapes_set(shapes_project, max_images=1), 2, num_workers, range(1, 1, 2))
    assert loader.num_images == 0
    assert list(loader) == []


def test_evaluation_of_some_images(shapes_project):
    dataset = shapes_set(shapes_project, scale_range=(0.1, 2.0))
    loader = BatchLoader(dataset, 2, 0, range(1, len(dataset), 2))
    assert loader.num_images == 3
    batches = list(loader)
    assert [batch.image_ids for batch in batches] == [[12, 21], [30]]
    np.testing.assert_array_equal(batches[0].images[0].permute(1, 2, 0), dataset[1].image)


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
def test_processes_evaluate_every_image_once(shapes_project, world_size):
    dataset = shapes_set(shapes_project)
    loaders = [BatchLoader(dataset, 2, 0, range(rank, len(dataset), world_size)) for rank in range(world_size)]
    assert sum(loader.num_images for loader in loaders) == 6
    assert sorted(id_ for loader in loaders for batch in loader for id_ in batch.image_ids) == [11, 12, 15, 21, 22, 30]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_loading_draws_no_random_numbers_of_the_trainings(shapes_project, num_workers, training):
    dataset = shapes_set(shapes_project, scale_range=(0.1, 2.0))
    torch.manual_seed(7)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    loader = BatchLoader(dataset, 2, num_workers, EpochSampler(len(dataset), 0) if training else None)
    for _ in range(2):
        assert len(list(loader)) == 3
    next(iter(loader))  # an epoch that is begun only
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_serves_every_image_in_order(shapes_project, num_workers):
    loader = BatchLoader(shapes_set(shapes_project), 4, num_workers)
    assert loader.num_images == 6
    assert [batch.image_ids for batch in loader] == [[11, 12, 15, 21], [22, 30]]


def test_evaluation_of_fewer_images_than_a_batch(shapes_project):
    assert [batch.image_ids for batch in BatchLoader(shapes_set(shapes_project, "val"), 16, 0)] == [[102, 105, 109]]


@pytest.mark.parametrize(
    ("batch_size", "start", "sizes"),
    [(4, 0, [4]), (3, 0, [3, 3]), (6, 0, [6]), (7, 0, [6]), (2, 2, [2, 2]), (4, 4, []), (5, 6, [])],
)
def test_training_leaves_out_the_incomplete_last_batch_unless_it_is_the_only_one(
    shapes_project, batch_size, start, sizes
):
    dataset = shapes_set(shapes_project)
    sampler = EpochSampler(len(dataset), seed=0)
    loader = BatchLoader(dataset, batch_size, 0, sampler)
    sampler.start = start
    assert [len(batch.image_ids) for batch in loader] == sizes
    assert loader.num_images == sum(sizes)


def message_of_the_error(batches) -> str:
    """What iterating over `batches` is refused with. The error itself, which holds the loader, is let go."""
    try:
        for _ in batches:
            pass
    except InputError as error:
        return str(error)
    pytest.fail("no InputError")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_image_is_one_clean_error_whoever_reads_it(shapes_project, num_workers):
    path = shapes_project.data / "train" / "000021.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    message = message_of_the_error(BatchLoader(shapes_set(shapes_project), 2, num_workers))
    assert str(path) in message and "\n" not in message
    assert "Traceback" not in message and "worker" not in message


def test_batches_before_a_broken_image_are_served(shapes_project):
    (shapes_project.data / "train" / "000021.jpg").write_bytes(b"")
    batches = iter(BatchLoader(shapes_set(shapes_project), 2, 1))
    assert next(batches).image_ids == [11, 12]
    assert "000021" in message_of_the_error(batches)


def test_workers_stop_at_once_after_a_broken_image(shapes_project):
    (shapes_project.data / "train" / "000021.jpg").write_bytes(b"")
    gc.collect()  # of other tests
    start = time.monotonic()
    message_of_the_error(BatchLoader(shapes_set(shapes_project), 2, 1))
    gc.collect()  # a loader that is left for the garbage collection waits five seconds for each worker
    assert time.monotonic() - start < 4
