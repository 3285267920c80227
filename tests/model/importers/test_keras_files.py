"""Keras weights in HDF5: both layouts, pointers to other files, and a library that never ends."""

import random

import h5py
import keras
import numpy as np
import pytest

from data.errors import UserError
from model.importers import hdf5_process
from model.importers.keras_files import read_hdf5
from model.importers.refusals import Budget, Refusal
from model.importers.tensor_files import read_tensors

_KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)


def _save_keras2(path, inside=""):
    """Layers in an order of their own, one without weights, as Keras 2 saved them."""
    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        root.attrs["layer_names"] = [b"conv1_conv", b"conv1_relu", b"bn"]
        root.attrs["backend"] = b"tensorflow"
        conv = root.create_group("conv1_conv")
        conv.attrs["weight_names"] = [b"conv1_conv/kernel:0", b"conv1_conv/bias:0"]
        conv["conv1_conv/kernel:0"] = _KERNEL
        conv["conv1_conv/bias:0"] = np.float64([1, 2])
        root.create_group("conv1_relu").attrs["weight_names"] = np.array([])
        batch_norm = root.create_group("bn")
        # Keras splits an attribute that is longer than 64 KB.
        batch_norm.attrs["weight_names0"] = [b"bn/gamma:0"]
        batch_norm.attrs["weight_names1"] = [b"bn/steps:0"]
        batch_norm["bn/gamma:0"] = np.float16([0.5])
        batch_norm["bn/steps:0"] = np.int64(3)
        if inside:
            file.create_group("optimizer_weights")["momentum"] = _KERNEL
    return str(path)


@pytest.mark.parametrize("inside", ["", "model_weights"])
def test_the_layout_of_keras_2(tmp_path, inside):
    found = read_tensors(_save_keras2(tmp_path / "resnet.h5", inside))
    expected = {
        "conv1_conv/kernel:0": _KERNEL,
        "conv1_conv/bias:0": np.float32([1, 2]),
        "bn/gamma:0": np.float32([0.5]),
        "bn/steps:0": np.int64(3),
    }
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_keras_3_saves(tmp_path):
    model = keras.Sequential(
        [keras.layers.Input((5,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1)]
    )
    model.compile("sgd")
    kernel = np.arange(10, dtype=np.float32).reshape(5, 2)
    model.layers[0].set_weights([kernel, np.float32([1, 2])])
    model.save_weights(tmp_path / "a.weights.h5")
    model.save(tmp_path / "a.h5")
    model.save(tmp_path / "a.keras")
    paths = read_tensors(str(tmp_path / "a.weights.h5"))
    assert list(paths) == [f"layers/dense{i}/vars/{n}" for i in ("", "_1") for n in (0, 1)]
    np.testing.assert_array_equal(paths["layers/dense/vars/0"], kernel)
    layers = read_tensors(str(tmp_path / "a.h5"))
    assert list(layers)[:2] == [f"{model.name}/first/kernel", f"{model.name}/first/bias"]
    np.testing.assert_array_equal(layers[f"{model.name}/first/kernel"], kernel)
    with pytest.raises(UserError, match="unzip it and give its model.weights.h5"):
        read_tensors(str(tmp_path / "a.keras"))


def _external_link(file):
    file["layers/w"] = h5py.ExternalLink("other.h5", "/secret")


def _soft_link(file):
    file["a"] = _KERNEL
    file["layers/w"] = h5py.SoftLink("/a")


def _external_storage(file):
    file.create_dataset("w", (3,), "f4", external=[("secret.bin", 0, 12)])


def _virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (3,))
    file.create_virtual_dataset("w", layout)


def _circle(file):
    file.create_group("a")["b"] = file["/"]


def _huge(file):
    file.create_dataset("w", (2**20, 2**20), "f4", chunks=(1024, 1024))[0, 0] = 1


def _huge_chunks(file):
    file.create_dataset("w", (4,), "f4", chunks=(2**29,), maxshape=(None,))


def _never_written(file):
    file.create_dataset("w", (3,), "f4")


def _text(file):
    file["w"] = "text"


def _unusual_filter(file):
    file.create_dataset("w", data=_KERNEL, compression="lzf")


def _nothing(file):
    file.create_group("layers")


def _listed_but_missing(file):
    file.attrs["layer_names"] = [b"conv"]


def _listed_twice(file):
    file.attrs["layer_names"] = [b"conv", b"conv"]
    file.create_group("conv").attrs["weight_names"] = [b"w"]
    file["conv/w"] = _KERNEL


def _listed_outside(file):
    file.attrs["layer_names"] = [b"conv"]
    file.create_group("conv").attrs["weight_names"] = [b"/secret"]
    file["secret"] = _KERNEL


@pytest.mark.parametrize(
    "fill, sentence",
    [
        (_external_link, "is a link, .*unsafe"),
        (_soft_link, "is a link, .*unsafe"),
        (_external_storage, "in another file.*unsafe"),
        (_virtual, "in another file.*unsafe"),
        (_circle, "contains itself"),
        (_huge, "would need far more memory"),
        (_huge_chunks, "would need far more memory"),
        (_never_written, "was never written"),
        (_text, "does not contain numbers"),
        (_unusual_filter, "unsupported compression"),
        (_nothing, "contains no tensors"),
        (_listed_but_missing, "'conv' is listed but missing"),
        (_listed_twice, "two weights have the name 'w'"),
        (_listed_outside, "'' is not a valid name"),
    ],
)
def test_what_is_refused(tmp_path, fill, sentence):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.float32([1, 2, 3])
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    with h5py.File(tmp_path / "w.h5", "w") as file:
        fill(file)
    with pytest.raises(UserError, match=sentence):
        read_tensors(str(tmp_path / "w.h5"))


def test_compressed_weights_are_read(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("w", data=_KERNEL, compression="gzip", shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(read_tensors(str(tmp_path / "w.h5"))["w"], _KERNEL)


def test_files_cut_short_are_refused(tmp_path):
    content = (tmp_path / _save_keras2(tmp_path / "whole.h5")).read_bytes()
    path = tmp_path / "cut.h5"
    for length in range(1, len(content), 97):
        path.write_bytes(content[:length])
        # Here in this process, as a hundred more would take a minute.
        with pytest.raises((OSError, Refusal)):
            read_hdf5(str(path), Budget(length))
    with pytest.raises(UserError, match="the HDF5 library failed to read it"):
        read_tensors(str(path))


def test_files_with_wrong_bytes_are_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_process, "_SECONDS", 20.0)
    content = (tmp_path / _save_keras2(tmp_path / "whole.h5")).read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(12):
        wrong = bytearray(content)
        for _ in range(20):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        (tmp_path / "wrong.h5").write_bytes(wrong)
        try:
            read_tensors(str(tmp_path / "wrong.h5"))
        except UserError as error:
            refused += 1
            assert str(error).endswith(".")
    assert refused


def test_a_file_that_sends_the_library_round_in_a_circle_is_refused(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = np.array(["conv", "bn"], h5py.string_dtype())
    content = (tmp_path / "w.h5").read_bytes()
    # The heap of texts: an object's index, references, reserve and size, then the text. With this
    # size the next object lies among zeros; it is one of no size, after which it is the next again.
    size = content.index(b"GCOL") + 16 + 8
    assert content[size : size + 10] == b"\x02\0\0\0\0\0\0\0bn"
    endless = content[:size] + (1024).to_bytes(8, "little") + content[size + 8 :]
    monkeypatch.setattr(hdf5_process, "_SECONDS", 8.0)
    # The file as it was is answered within the limit.
    with pytest.raises(UserError) as answer:
        read_tensors(str(tmp_path / "w.h5"))
    assert "did not finish" not in str(answer.value)
    (tmp_path / "w.h5").write_bytes(endless)
    with pytest.raises(UserError, match="did not finish"):
        read_tensors(str(tmp_path / "w.h5"))
