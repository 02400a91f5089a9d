"""Order, sharding and batches: which images are loaded when, by which process, and what happens on errors."""

import gc
import os
import signal
import time

import numpy as np
import pytest
import torch

from efficientdet.data.augmentation import Augmentation
from efficientdet.data.dataset import CocoDataset
from efficientdet.data.loader import BatchLoader, EpochSampler, collate, is_dead_worker
from efficientdet.project import load_project
from efficientdet.structures import PADDING_CLASS
from utils.errors import InputError

JITTER = Augmentation(min_scale=0.1, max_scale=2.0)


def shapes_set(shapes_project, set_name: str = "train", **options) -> CocoDataset:
    return CocoDataset(shapes_project.data, set_name, load_project(shapes_project.yml), (128, 128), **options)


# The order of images.


def test_sampler_without_images_is_empty():
    assert list(EpochSampler(0, seed=0)) == []


def test_each_epoch_has_every_image_once_in_its_own_order():
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


def test_sampler_resumes_in_the_middle_of_an_epoch():
    sampler = EpochSampler(10, seed=0)
    sampler.epoch = 2
    whole = list(sampler)
    sampler.start = 4
    assert list(sampler) == whole[4:]
    assert len(sampler) == 6


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("length", "start"), [(0, 0), (3, 0), (8, 8), (11, 8)])
def test_shard_of_an_incomplete_step_is_empty(length, start, rank):
    sampler = EpochSampler(length, seed=0, step_images=4, rank=rank, world_size=2)
    sampler.start = start
    assert list(sampler) == [] and len(sampler) == 0


@pytest.mark.parametrize(
    ("start", "shares"),
    [
        (0, [[0, 1, 4, 5], [2, 3, 6, 7]]),  # the last three of 11 images do not fill a step
        (4, [[4, 5], [6, 7]]),
        (3, [[3, 4, 7, 8], [5, 6, 9, 10]]),  # the last step is just complete
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
def test_processes_together_see_the_images_of_one(world_size):
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
        dataset = shapes_set(shapes_project, seed=1, augmentation=JITTER)
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


def test_batch_without_objects_has_empty_targets(shapes_project):
    batch = collate([shapes_set(shapes_project)[2]] * 2)
    assert batch.targets.boxes.shape == (2, 0, 4) and batch.targets.class_ids.shape == (2, 0)
    assert batch.targets.class_ids.dtype == torch.int64


def test_targets_are_padded_to_the_largest_number_of_objects(shapes_project):
    dataset = shapes_set(shapes_project)
    batch = collate([dataset[0], dataset[1], dataset[2]])
    assert batch.image_ids == [11, 12, 15]
    assert batch.images.shape == (3, 3, 128, 128) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.class_ids.tolist() == [[0, PADDING_CLASS], [1, 0], [PADDING_CLASS] * 2]
    np.testing.assert_array_equal(batch.targets.boxes[1], dataset[1].target.boxes)
    assert (batch.targets.boxes[2] == 0).all()
    np.testing.assert_array_equal(batch.images[1].permute(1, 2, 0), dataset[1].image)


def test_all_tensors_of_a_batch_move_to_a_device(shapes_project):
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


@pytest.mark.parametrize("augmentation", [None, JITTER])
def test_batches_are_the_same_with_and_without_workers(shapes_project, augmentation):
    runs = []
    for num_workers in (0, 2):
        dataset = shapes_set(shapes_project, seed=1, augmentation=augmentation)
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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_without_images(shapes_project, num_workers):
    # As the second of two processes with a single image.
    loader = BatchLoader(shapes_set(shapes_project, max_images=1), 2, num_workers, range(1, 1, 2))
    assert loader.num_images == 0
    assert list(loader) == []


def test_evaluation_of_some_images(shapes_project):
    dataset = shapes_set(shapes_project, augmentation=JITTER)
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
def test_loading_leaves_the_random_state_of_training_alone(shapes_project, num_workers, training):
    dataset = shapes_set(shapes_project, augmentation=JITTER)
    torch.manual_seed(7)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    loader = BatchLoader(dataset, 2, num_workers, EpochSampler(len(dataset), 0) if training else None)
    for _ in range(2):
        assert len(list(loader)) == 3
    next(iter(loader))  # an epoch that is not finished
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
def test_training_drops_the_incomplete_last_batch_unless_it_is_the_only_one(shapes_project, batch_size, start, sizes):
    dataset = shapes_set(shapes_project)
    sampler = EpochSampler(len(dataset), seed=0)
    loader = BatchLoader(dataset, batch_size, 0, sampler)
    sampler.start = start
    assert [len(batch.image_ids) for batch in loader] == sizes
    assert loader.num_images == sum(sizes)


def test_training_resumes_in_the_middle_of_an_epoch(shapes_project):
    dataset = shapes_set(shapes_project, augmentation=JITTER)
    loader = BatchLoader(dataset, 2, 0, EpochSampler(len(dataset), seed=0))
    loader.start_epoch(3)
    whole = list(loader)
    loader.start_epoch(3, images_done=2)
    resumed = list(loader)
    assert [batch.image_ids for batch in resumed] == [batch.image_ids for batch in whole[1:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, whole[1:]))


def message_of_the_error(batches) -> str:
    """Return the message of the InputError raised by iterating. The error is dropped: it refers to the loader."""
    try:
        for _ in batches:
            pass
    except InputError as error:
        return str(error)
    pytest.fail("no InputError")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_image_is_one_clean_error_with_and_without_workers(shapes_project, num_workers):
    path = shapes_project.data / "train" / "000021.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    message = message_of_the_error(BatchLoader(shapes_set(shapes_project), 2, num_workers))
    assert str(path) in message and "\n" not in message
    assert "Traceback" not in message and "worker" not in message


def test_batches_before_a_broken_image_are_yielded(shapes_project):
    (shapes_project.data / "train" / "000021.jpg").write_bytes(b"")
    batches = iter(BatchLoader(shapes_set(shapes_project), 2, 1))
    assert next(batches).image_ids == [11, 12]
    assert "000021" in message_of_the_error(batches)


def test_workers_stop_at_once_after_a_broken_image(shapes_project):
    (shapes_project.data / "train" / "000021.jpg").write_bytes(b"")
    gc.collect()  # loaders of other tests
    start = time.monotonic()
    message_of_the_error(BatchLoader(shapes_set(shapes_project), 2, 1))
    gc.collect()  # a loader that is garbage collected later would wait five seconds for each worker
    assert time.monotonic() - start < 4


class _KillsItsProcess(CocoDataset):
    def load_image(self, image_id):
        os.kill(os.getpid(), signal.SIGKILL)


def test_dead_worker_is_recognized(shapes_project):
    dataset = _KillsItsProcess(shapes_project.data, "train", load_project(shapes_project.yml), (128, 128))
    with pytest.raises(RuntimeError) as caught:
        list(BatchLoader(dataset, 1, 1))
    assert is_dead_worker(caught.value) and not is_dead_worker(RuntimeError("CUDA error"))
