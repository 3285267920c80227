"""mmdetection's names of a ResNet with deformable convolutions."""

import re

import numpy as np
from test_torchvision_classifiers import load, make_parts

from model.backbones import Options
from model.importers import families
from model.variables import named_variables


def their_name(ours: str) -> str:
    """The name in mmdetection's files of one of the backbone's variables."""
    name = (
        ours.removeprefix("backbone/").replace("stem/conv/", "conv1/").replace("stem/norm/", "bn1/")
    )
    name = re.sub(r"stages/(\d)/(\d+)/", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", name)
    name = re.sub(r"conv(\d)/norm/", r"bn\1/", name)
    name = name.replace("shortcut/conv", "downsample.0").replace("shortcut/norm", "downsample.1")
    name = name.replace("conv2/conv/offsets", "conv2.conv_offset").replace("/conv/", "/")
    ends = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    ends |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    head, _, end = name.rpartition("/")
    return f"backbone.{head.replace('/', '.')}.{ends[end.lstrip('_')]}"


def test_every_tensor_finds_its_place():
    parts = make_parts("resnet50_dcn", Options("frozen_bn", width=8), has_trunk=False)
    variables = named_variables(parts["backbone"])
    rng = np.random.default_rng(0)
    tensors = {}
    for name, variable in variables.items():
        shape = np.array(variable.shape)
        shape = shape[[3, 2, 0, 1]] if len(shape) == 4 else shape
        tensors[their_name(name)] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    assert len(tensors) == len(variables)
    assert load(parts, tensors, families.MMDETECTION).complete
    offsets = parts["backbone"].stages[2][1].conv2.conv.offsets
    key = "backbone.layer3.1.conv2.conv_offset"
    np.testing.assert_array_equal(offsets.kernel, tensors[f"{key}.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(offsets.bias, tensors[f"{key}.bias"])
