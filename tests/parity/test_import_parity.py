"""The names and shapes of published checkpoints: every tensor finds its variable and vice versa."""

import dataclasses

import numpy as np
import pytest
from fixtures import FOLDER, fixture, key_list
from reference_networks import flagfile

from model.importers.translate import count_classes, recognise, translate
from model.norms import BATCH_NORM_EPSILON
from model.systems import build_network
from model.variables import named_variables
from tools.import_weights import parse_classes
from trainer.config import Params

fixture("i_mm_tiny.npz")
# The network that each list is of: flagfile, and what else its name says.
NETWORKS = {
    "detectron2_R-50_pkl": ("detectron2", {"num_classes": 2}),
    "detectron2_mask_rcnn_R_50_FPN": ("detectron2", {"system": "mask_rcnn"}),
    "maskscoring_rcnn_R_50_FPN": ("authors", {}),
    "mmdet_mask_rcnn_r50_fpn_1x_coco": ("mmdetection", {"system": "mask_rcnn"}),
    "mmdet_ms_rcnn_r50_caffe_fpn_1x_coco": ("mmdetection_caffe", {}),
    "mmdet_ms_rcnn_r50_fpn_1x_coco": ("mmdetection", {}),
    "torchvision_fasterrcnn_resnet50_fpn": (
        "torchvision",
        {"system": "faster_rcnn"},
    ),
    "torchvision_maskrcnn_resnet50_fpn": ("torchvision", {"system": "mask_rcnn"}),
    "torchvision_maskrcnn_resnet50_fpn_v2": ("torchvision_v2", {"system": "mask_rcnn"}),
    "torchvision_resnet50": ("torchvision", {"num_classes": 2}),
}
LISTS = sorted(path.stem for path in (FOLDER / "keys").glob("*.json"))


def tensors_of(keys):
    """One constant a tensor, told apart by its place in the list."""
    return {
        name: np.full(entry["shape"], number, np.float32)
        for number, (name, entry) in enumerate(keys.items(), start=1)
    }


@pytest.fixture(scope="module")
def shapes_of():
    """Shapes of the variables of a network, made once for each set of settings."""
    made = {}

    def get(name, settings):
        key = name, tuple(sorted(settings.items()))
        if key not in made:
            params = flagfile(name)
            config = dataclasses.replace(params.model, norm="frozen_bn", **settings)
            variables = named_variables(build_network(Params(model=config, data=params.data)))
            made[key] = {path: tuple(variable.shape) for path, variable in variables.items()}
        return made[key]

    return get


def translated(tensors, name, shapes_of):
    flags, settings = NETWORKS[name]
    stride = flagfile(flags).model.resnet_stride_in_1x1
    family = recognise(tensors, stride)
    classes = {"num_classes": count_classes(tensors, family)} | settings
    return translate(tensors, family, shapes_of(flags, classes))


@pytest.mark.parametrize("name", [name for name in LISTS if "C4" not in name])
def test_every_tensor_of_a_published_checkpoint_has_its_place(name, shapes_of):
    tensors = tensors_of(key_list(name)["keys"])
    result = translated(tensors, name, shapes_of)
    assert result.complete, (result.unexpected, result.missing)
    placed = len(result.matched) + len(result.reshaped) + len(result.skipped)
    assert placed == len(tensors)
    is_backbone = result.family.scope != ("",)
    assert bool(result.initial) == is_backbone
    assert all(not path.startswith("backbone/") for path in result.initial)
    sources = [path for _, path in result.matched + result.reshaped]
    assert len(sources) == len(set(sources))


def test_the_older_names_of_torchvision_lead_to_the_same_variables(shapes_of):
    name = "torchvision_maskrcnn_resnet50_fpn"
    keys = key_list(name)
    older = {new: old for old, new in keys["old_names_to_new"].items()}
    tensors = tensors_of(keys["keys"])
    renamed = {older.get(tensor, tensor): value for tensor, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    new = translated(tensors, name, shapes_of)
    old = translated(renamed, name, shapes_of)
    assert old.complete
    for path, value in new.values.items():
        if path.endswith("norm/gamma"):
            # The released files have no epsilon; without ours their scales would be larger.
            variance = new.values[path.replace("gamma", "moving_variance")]
            value = value * np.sqrt(1 + BATCH_NORM_EPSILON / variance)
        np.testing.assert_allclose(old.values[path], value, rtol=1e-6)


def test_torchvision_s_outputs_for_unused_ids_can_be_left_out(shapes_of):
    name = "torchvision_maskrcnn_resnet50_fpn"
    tensors = tensors_of(key_list(name)["keys"])
    names = [f"roi_heads.box_predictor.cls_score.{kind}" for kind in ("weight", "bias")]
    for tensor in names:
        tensors[tensor] = tensors[tensor] * 0 + np.arange(91).reshape(
            -1, *[1] * (tensors[tensor].ndim - 1)
        )
    kept = parse_classes("coco91", 91)
    assert len(kept) == 80 and kept[:12] == [*range(1, 12), 13] and kept[-1] == 90
    settings = {"num_classes": 81, "system": "mask_rcnn"}
    family = recognise(tensors, stride_in_1x1=False)
    result = translate(tensors, family, shapes_of("torchvision", settings), kept)
    assert result.complete
    np.testing.assert_array_equal(result.values["box_head/classes/bias"], [0, *kept])
    np.testing.assert_array_equal(result.values["box_head/classes/kernel"][5], [0, *kept])


def test_detectron2_s_c4_network_is_refused():
    (name,) = [name for name in LISTS if "C4" in name]
    assert recognise(key_list(name)["keys"], stride_in_1x1=True) is None
