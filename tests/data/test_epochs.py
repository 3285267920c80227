"""The order of training: every image once an epoch, and the same order from any step on."""

import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.epochs import EpochPlan, ordered_records, plan_epochs, with_next

CONFIG = DataConfig(
    canvases=("32x64", "64x32", "64x64"), short_side=48, long_side=64, train_short_side_min=48
)
LANDSCAPE, PORTRAIT, SQUARE = (20, 40), (40, 20), (30, 30)


def test_what_an_epoch_takes_over_by_hand():
    plan = EpochPlan(counts=(5, 7), window=3, passes=1)
    assert [plan.taken_over(epoch) for epoch in range(4)] == [[0, 0], [2, 1], [1, 2], [0, 0]]
    # 5 // 3 + 7 // 3, 10 // 3 + 14 // 3, 15 // 3 + 21 // 3
    assert [plan.windows_before(epoch) for epoch in range(4)] == [0, 3, 7, 12]
    assert [plan.locate(step) for step in (0, 2, 3, 6, 7, 11, 12)] == [
        (0, 0), (0, 2), (1, 0), (1, 3), (2, 0), (2, 4), (3, 0)]  # fmt: skip


@settings(max_examples=200)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    window=st.integers(1, 16),
    step=st.integers(0, 500),
)
def test_every_step_lies_in_one_epoch(counts, window, step):
    counts = [max(count, window) for count in counts]
    plan = EpochPlan(tuple(counts), window, 1)
    epoch, before = plan.locate(step)
    assert plan.windows_before(epoch) + before == step < plan.windows_before(epoch + 1)
    for count, early, late in zip(
        counts, plan.taken_over(epoch), plan.taken_over(epoch + 1), strict=True
    ):
        assert (early + count - late) % window == 0
        assert late < window <= count


def test_images_go_to_the_canvases_that_their_sizes_fit():
    config, plan = plan_epochs(CONFIG, {LANDSCAPE: 5, PORTRAIT: 3, (10, 20): 2}, window=3)
    assert config.canvases == ("32x64", "64x32")
    assert plan == EpochPlan((7, 3), 3, 1)


def test_a_canvas_too_rare_for_a_step_is_merged_into_another(capsys):
    config, plan = plan_epochs(CONFIG, {LANDSCAPE: 9, PORTRAIT: 3, SQUARE: 6}, window=4)
    assert config.canvases == ("32x64", "64x64")
    assert plan == EpochPlan((9, 9), 4, 1)
    assert (
        "Canvas 64x32 has 3 of the 18 training images, fewer than the 4" in capsys.readouterr().err
    )


def test_fewer_images_than_a_step_are_walked_through_several_times():
    assert plan_epochs(CONFIG, {LANDSCAPE: 2, PORTRAIT: 1}, window=8)[1].passes == 3
    config, plan = plan_epochs(CONFIG, {LANDSCAPE: 3}, window=8)
    assert plan == EpochPlan((9,), 8, 3)
    assert config.canvases == ("32x64",)


# Two in three are landscape.
SIZES = [PORTRAIT if number % 3 == 0 else LANDSCAPE for number in range(23)]


def records_of_pass(number):
    """Records in an order that the pass decides."""
    tf.random.set_seed(1)  # of this function's graph; other tests may have set the process's
    return tf.data.Dataset.from_tensor_slices(
        [make_record(size, number) for number, size in enumerate(SIZES)]
    ).shuffle(9, number + 1, reshuffle_each_iteration=False)


def make_record(size, number):
    """A record that tells its number in place of an image."""
    features = {"height": [size[0]], "width": [size[1]], "id": [number]}
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                f"image/{name}": tf.train.Feature(int64_list=tf.train.Int64List(value=value))
                for name, value in features.items()
            }
            | {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b""]))}
        )
    ).SerializeToString()


def steps(window, start, count):
    """(image, pass) of `count` steps from `start` on."""
    sizes = collections.Counter(SIZES)
    config, plan = plan_epochs(CONFIG, sizes, window)
    order = ordered_records(records_of_pass, config, plan, start)
    spec = {"image/id": tf.io.FixedLenFeature([], tf.int64)}
    numbered = order.map(lambda r, n: (tf.io.parse_single_example(r, spec)["image/id"], n))
    images = [tuple(map(int, pair)) for pair in numbered.take(count * window).as_numpy_iterator()]
    return [images[place : place + window] for place in range(0, len(images), window)]


@pytest.mark.parametrize("window", [4, 8, 30])
def test_the_order_is_the_same_from_any_step_on(window):
    whole = steps(window, 0, 20)
    for start in (1, 5, 16):
        assert steps(window, start, 4) == whole[start : start + 4], start
    images = collections.Counter(itertools.chain(*whole))
    assert max(images.values()) == 1, "an image came twice in one pass"
    passes = max(number for _, number in images)
    for number in range(passes - 30 // window):
        assert {image for image, of in images if of == number} == set(range(len(SIZES)))
    for step in whole:
        assert window > len(SIZES) or len({SIZES[image] for image, _ in step}) == 1


def test_interruptions_neither_lose_nor_repeat_an_image():
    """Kills in the first and the third of three epochs of 23 images, 69 steps of one image."""
    starts = (0, 5, 6, 20, 50, 61, 69)
    parts = [steps(1, start, end - start) for start, end in zip(starts, starts[1:], strict=False)]
    shown = collections.Counter(image for step in itertools.chain(*parts) for image, _ in step)
    assert shown == dict.fromkeys(range(len(SIZES)), 3)


def test_the_second_picture_is_the_next_in_the_order():
    records = [(f"record {number}", number // 3) for number in range(6)]
    names, numbers = zip(*records, strict=True)
    dataset = tf.data.Dataset.from_tensor_slices((list(names), np.int64(numbers)))
    pairs = [(a.decode(), int(n), b.decode()) for a, n, b in with_next(dataset).as_numpy_iterator()]
    assert pairs == [(*records[place], names[place + 1]) for place in range(5)]
    assert [(a.decode(), int(n), b.decode()) for a, n, b in
            with_next(dataset.skip(2)).as_numpy_iterator()] == pairs[2:]  # fmt: skip
