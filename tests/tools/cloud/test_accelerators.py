"""TPU types: their hosts and software, and those that TensorFlow does not support."""

import pytest

from data.settings import SettingError
from tools.cloud.accelerators import parse_accelerator


@pytest.mark.parametrize(
    "name, runtime_version",
    [
        ("v2-8", "tpu-vm-tf-2.20.0-pjrt"),
        ("v3-32", "tpu-vm-tf-2.20.0-pod-pjrt"),
        ("v4-8", "tpu-vm-tf-2.20.0-pjrt"),
        ("v4-16", "tpu-vm-tf-2.20.0-pod-pjrt"),
        ("v5litepod-1", "tpu-vm-tf-2.20.0-pjrt"),
        ("v5litepod-8", "tpu-vm-tf-2.20.0-pjrt"),
        ("v5litepod-16", "tpu-vm-tf-2.20.0-pod-pjrt"),
        ("v5p-8", "tpu-vm-tf-2.20.0-pjrt"),
        ("v5p-128", "tpu-vm-tf-2.20.0-pod-pjrt"),
    ],
)
def test_software_belongs_to_the_type(name, runtime_version):
    accelerator = parse_accelerator(name)
    assert accelerator.name == name
    assert accelerator.runtime_version == runtime_version


@pytest.mark.parametrize("name", ["v6e-8", "v7x-8", "tpu7x-16", "TPU7x-16", "tpu8-4", "v10-8"])
def test_types_without_tensorflow_are_refused_with_the_reason(name):
    with pytest.raises(SettingError, match="TensorFlow supports TPU v2 to v5 only"):
        parse_accelerator(name)


@pytest.mark.parametrize("name", ["v5litepod", "v5litepod-", "v5p-0", "v4-x", "a100", "", "v1-8"])
def test_other_names_are_refused(name):
    with pytest.raises(SettingError, match=f"--accelerator_type={name}: expected one of v2, v3"):
        parse_accelerator(name)


def test_gclouds_name_of_v5e_is_suggested():
    with pytest.raises(SettingError, match="gcloud calls this type v5litepod-4"):
        parse_accelerator("v5e-4")
