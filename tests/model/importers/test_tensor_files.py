"""Weight files as other programs wrote them, whole, cut short and with wrong bytes.

tests/fixtures/README.md tells how each was made.
"""

import random
import zipfile

import numpy as np
import pytest
from crafted_files import Call, legacy_checkpoint, pickled, storage, tensor, torch_archive

from data.errors import UserError
from model.importers.tensor_files import read_tensors

_CHECKPOINT = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "half": np.float32([0, 0.5, -1.5]),
    "bfloat16": np.float32([1, -2, 0.15625]),
    "double": np.float32([[1], [0.25]]),
    "num_batches_tracked": np.int64(1234),
    "bool": np.array([True, False, True]),
    "int32": np.int32([-7, 70000]),
    "int16": np.int16([-300, 300]),
    "int8": np.int8([-5, 5]),
    "uint8": np.uint8([0, 255]),
    "transposed": np.float32([[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]),
    "shared.middle": np.float32([2, 3, 4, 5]),
    "shared.thirds": np.float32([0, 3, 6, 9]),
    "expanded": np.float32([[3, 3, 3], [4, 4, 4]]),
    "empty": np.zeros((0, 4), np.float32),
}
_KERNEL = np.float32([[[-6, -5], [-4, -3]], [[-2, -1], [0, 1]], [[2, 3], [4, 5]]])
_DETECTRON2 = {
    "stem.conv1.weight": _KERNEL,
    "stem.conv1.norm.bias": np.int64([2, 3]),
    "fortran": np.float32([[0, 1, 2], [3, 4, 5]]),
}
_EXPECTED = {
    "torch_zip.pth": _CHECKPOINT,
    "torch_legacy.pth": _CHECKPOINT,
    "torch_parallel.pth": {
        "conv.weight": np.float32([3, 4]).reshape(2, 1, 1, 1),
        "conv.bias": np.float32([0.5, 0.5]),
        "bn.weight": np.float32([1, 1]),
        "bn.bias": np.float32([0, 0]),
        "bn.running_mean": np.float32([0, 0]),
        "bn.running_var": np.float32([1, 1]),
        "bn.num_batches_tracked": np.int64(0),
    },
    "torch_untyped.pth": {"u16": np.uint16([1, 65535]), "f32": np.float32([1.5])},
    "detectron2_protocol2.pkl": _DETECTRON2,
    "detectron2_protocol5.pkl": _DETECTRON2,
    "caffe2_python2.pkl": {
        "conv1_w": _KERNEL,
        "conv1_b": np.float32([1.5, -1.5]),
        "fortran": np.float32([[0, 1, 2], [3, 4, 5]]),
        "big_endian": np.float32([0, 1, 2]),
        "step": np.int64(9),
    },
    "numpy.safetensors": {
        name: _CHECKPOINT[name]
        for name in (
            "num_batches_tracked",
            "double",
            "conv.weight",
            "empty",
            "int32",
            "bfloat16",
            "half",
            "int16",
            "int8",
            "uint8",
            "bool",
        )
    },  # fmt: skip
}


def _read(tmp_path, content):
    path = tmp_path / "weights"
    path.write_bytes(content)
    return read_tensors(str(path))


def _assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].flags.c_contiguous and found[name].flags.writeable, name
        np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)


@pytest.fixture(scope="session")
def fixtures(repository):
    return repository / "tests" / "fixtures"


@pytest.mark.parametrize("name", _EXPECTED)
def test_what_other_programs_saved(fixtures, name):
    _assert_equal(read_tensors(str(fixtures / name)), _EXPECTED[name])


@pytest.mark.parametrize(
    "name, sentence",
    [
        (
            "torch_module.pth",
            "an object of 'torch.nn.modules.linear.Linear', not a dict of weights",
        ),
        ("torch_quantised.pth", "its weight 'w' is an object of 'torch._utils._rebuild_qtensor'"),
        ("torch_script.pt", "TorchScript program"),
    ],
)
def test_what_is_refused_of_pytorch(fixtures, name, sentence):
    with pytest.raises(UserError, match=name) as caught:
        read_tensors(str(fixtures / name))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", _EXPECTED)
def test_files_cut_short_are_refused(fixtures, tmp_path, name):
    content = (fixtures / name).read_bytes()
    for length in [*range(1, len(content), 97), len(content) - 1]:
        with pytest.raises(UserError, match="cannot be read as weights"):
            _read(tmp_path, content[:length])


def _with_wrong_bytes(rng, content):
    wrong = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(wrong))
        wrong[place] = rng.choice([0, 255, rng.randrange(256), wrong[place] ^ 1])
    return bytes(wrong)


def _read_or_refuse(tmp_path, content):
    try:
        tensors = _read(tmp_path, content)
    except UserError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
        return False
    return all(isinstance(array, np.ndarray) for array in tensors.values())


@pytest.mark.parametrize("name", _EXPECTED)
def test_files_with_wrong_bytes_are_read_or_refused(fixtures, tmp_path, name):
    rng = random.Random(name)
    content = (fixtures / name).read_bytes()
    outcomes = [_read_or_refuse(tmp_path, _with_wrong_bytes(rng, content)) for _ in range(300)]
    assert not all(outcomes)


def test_wrong_bytes_behind_a_right_checksum_are_read_or_refused(fixtures, tmp_path):
    rng = random.Random(0)
    with zipfile.ZipFile(fixtures / "torch_zip.pth") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    content = members.pop("data.pkl")
    storages = {n.removeprefix("data/"): m for n, m in members.items() if n.startswith("data/")}
    _assert_equal(_read(tmp_path, torch_archive(content, storages)), _CHECKPOINT)
    outcomes = [
        _read_or_refuse(tmp_path, torch_archive(_with_wrong_bytes(rng, content), storages))
        for _ in range(500)
    ]
    assert 50 < sum(outcomes) < 450


def _array(values, code="f4"):
    """A NumPy array as pickles describe it, of a type's code and byte order "<"."""
    data = np.array(values, code)
    dtype = Call("numpy.dtype", (code, False, True), (3, "<", None, None, None, -1, -1, 0))
    start = Call("numpy.core.multiarray._reconstruct", (None, (0,), b"b"))
    return start._replace(state=(1, data.shape, dtype, False, data.tobytes()))


_ONE, _TWO = _array([1]), _array([2])


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"a": _ONE}, {"a": [1]}),
        ({"state_dict": {"a": _ONE}, "model": {"b": _TWO}}, {"a": [1]}),
        ({"model": {"b": _TWO}, "optimizer": {"c": _ONE}}, {"b": [2]}),
        ({"model": {"state_dict": {"b": _TWO}}, "a": _ONE}, {"b": [2]}),
        ({"module": {"model": {"blobs": {"b": _TWO}}}}, {"b": [2]}),
        ({"model": "resnet", "model_state_dict": {"a": _ONE}}, {"a": [1]}),
        ({"model": Call("absent.Net", ()), "model_state_dict": {"a": _ONE}}, {"a": [1]}),
        ({"model": {"depth": 50}, "a": _ONE}, {"a": [1]}),
        ({"meta": {"a": _ONE}, "b": _TWO, 3: _ONE, "t": "x", "n": 5, "l": [_ONE]}, {"b": [2]}),
        ({"blobs": {"a": _ONE, "a_momentum": _TWO}}, {"a": [1]}),
        ({"model": {"a": _ONE, "a_momentum": _TWO}}, {"a": [1], "a_momentum": [2]}),
        ({"module.a": _ONE, "module.b": _TWO, "epoch": 1}, {"a": [1], "b": [2]}),
        ({"module.a": _ONE, "b": _TWO}, {"module.a": [1], "b": [2]}),
        ({"a": _ONE, "meta": {"time": Call("datetime.datetime", (b"x",))}}, {"a": [1]}),
    ],
)
def test_where_the_weights_are_looked_for(tmp_path, content, expected):
    found = _read(tmp_path, pickled(content))
    assert {name: array.tolist() for name, array in found.items()} == expected


@pytest.mark.parametrize(
    "content, sentence",
    [
        ({"a": 1}, "contains no tensors"),
        ([_ONE], "contains no tensors"),
        (_ONE, "a single array without a name"),
        ({"model": Call("absent.Net", ())}, "not a dict of weights"),
        ({"a": _ONE, "b": Call("absent.Thing", ())}, "its weight 'b' is an object of"),
        ({"a": _array(["x"], "U1")}, "an array of type 'U1' instead of numbers"),
        ({"a": _ONE._replace(state=None)}, "an array without content"),
        (
            {"a": _ONE._replace(state=(1, (2,), *_ONE.state[2:]))},
            "an array should have 8 bytes but has 4",
        ),
        ({"a": _ONE._replace(state=(1, (-1,), *_ONE.state[2:]))}, "an impossible shape"),
        ({"a": _ONE._replace(state=(1, (1,), "f4", False, b"1234"))}, "an array without a type"),
        ({"a": _ONE._replace(state=(*_ONE.state[:4], [1]))}, "an array without bytes"),
        ({"a": Call("os.system", ("true",))}, "names 'os.system', which weights never need"),
        ({"meta": Call("builtins.eval", ("1",)), "state_dict": {"a": _ONE}}, "'builtins.eval'"),
    ],
)
def test_pickles_that_are_refused(tmp_path, content, sentence):
    with pytest.raises(UserError) as caught:
        _read(tmp_path, pickled(content))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("code", ["O8", "V8", "f8"])
def test_arrays_whose_type_lies_about_pointers_are_refused(tmp_path, code):
    # NumPy itself would take the bytes for the addresses of objects.
    fields = {"x": (Call("numpy.dtype", ("O8", False, True)), 0)}
    state = (3, "|", None, ("x",), fields, 8, 1, 0)
    dtype = Call("numpy.dtype", (code, False, True), state)
    array = _ONE._replace(state=(1, (1,), dtype, False, b"\x10" * 8))
    with pytest.raises(UserError, match=f"an array of type '{code}' instead of numbers"):
        _read(tmp_path, pickled({"a": array}))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_attacks_are_refused_in_every_format(tmp_path, kind):
    target = tmp_path / "made"
    content = pickled({"w": Call("os.system", (f"touch {target}",))})
    wrapped = {
        "zip": torch_archive(content),
        "legacy": legacy_checkpoint(content),
        "pickle": content,
    }
    with pytest.raises(UserError, match="'os.system'.*the file is unsafe; delete it"):
        _read(tmp_path, wrapped[kind])
    assert not target.exists()


def test_numpy_arrays_and_tensors_may_stand_side_by_side(tmp_path):
    weights = {"array": _ONE, "tensor": tensor(storage(1), 0, (1,), (1,))}
    found = _read(tmp_path, torch_archive(pickled(weights), {"0": np.float32(5).tobytes()}))
    assert {name: array.tolist() for name, array in found.items()} == {"array": [1], "tensor": [5]}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_archives(tmp_path, save):
    arrays = {"b/kernel": np.arange(6.0).reshape(2, 3), "a": np.int16([1]), "c": np.float16(0.5)}
    save(tmp_path / "weights.npz", **arrays, fortran=np.asfortranarray(arrays["b/kernel"]))
    found = read_tensors(str(tmp_path / "weights.npz"))
    kernel = np.float32([[0, 1, 2], [3, 4, 5]])
    _assert_equal(
        found, {"b/kernel": kernel, "a": np.int16([1]), "c": np.float32(0.5), "fortran": kernel}
    )
    content = (tmp_path / "weights.npz").read_bytes()
    for length in range(1, len(content), 97):
        with pytest.raises(UserError, match="cannot be read as weights"):
            _read(tmp_path, content[:length])
    rng = random.Random(0)
    outcomes = [_read_or_refuse(tmp_path, _with_wrong_bytes(rng, content)) for _ in range(300)]
    assert not all(outcomes)


def test_npz_archives_of_objects_and_of_invented_sizes_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="instead of numbers"):
        read_tensors(str(tmp_path / "objects.npz"))
    header = b"\x93NUMPY\x01\x00v\x00" + b"%-117s\n" % (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    )
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.writestr("a.npy", header + bytes(16))
    with pytest.raises(UserError, match="an array should have 4000000000000 bytes but has 16"):
        read_tensors(str(tmp_path / "large.npz"))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"a": 1}', "JSON"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x40\0\0\0\0\0\0\0{}", "the safetensors file ends within its header"),
        (b"\x89PNG\r\n\x1a\n", "its format is unknown: give a PyTorch checkpoint"),
        (b"PK\x03\x04", "damaged or truncated"),
        (b"(what is this", "damaged or truncated"),
    ],
)
def test_foreign_files_are_named(tmp_path, content, sentence):
    with pytest.raises(UserError, match="weights") as caught:
        _read(tmp_path, content)
    assert sentence in str(caught.value)


def test_archives_of_other_kinds_are_named(tmp_path):
    for member, sentence in [("model.weights.h5", "unzip it"), ("photo.jpg", "without weights")]:
        with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
            archive.writestr(member, b"x")
        with pytest.raises(UserError, match=sentence):
            read_tensors(str(tmp_path / "archive"))


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match="is a folder: give the weight file"):
        read_tensors(str(tmp_path))
    with pytest.raises(UserError, match="The file .*absent.pth does not exist"):
        read_tensors(str(tmp_path / "absent.pth"))


def test_numbers_that_float32_cannot_hold_become_infinite_in_silence(tmp_path):
    found = _read(tmp_path, pickled({"a": _array([1e300, -1e300, 1], "f8")}))
    np.testing.assert_array_equal(found["a"], np.float32([np.inf, -np.inf, 1]))


def test_bools_are_those_of_the_file_whatever_their_bytes(tmp_path):
    bools = tensor(storage(3, kind="BoolStorage"), 0, (3,), (1,))
    found = _read(tmp_path, torch_archive(pickled({"a": bools}), {"0": b"\x00\x01\x02"}))
    assert found["a"].view(np.uint8).tolist() == [0, 1, 1]
