"""Checkpoints that PyTorch would not write: tensors beyond their storage, bombs, strange archives.

What PyTorch wrote is read in test_tensor_files.py.
"""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from crafted_files import (
    Call,
    Name,
    Persistent,
    legacy_checkpoint,
    pickled,
    storage,
    tensor,
    torch_archive,
)

from data.errors import UserError
from model.importers.tensor_files import read_tensors

_NUMBERS = np.arange(12, dtype="<f4").tobytes()


def _read(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return read_tensors(str(path))


def _read_tensor(tmp_path, described, data=_NUMBERS):
    return _read(tmp_path, torch_archive(pickled({"w": described}), {"0": data}))["w"]


@pytest.mark.parametrize(
    "offset, shape, strides, expected",
    [
        (0, (3, 4), (4, 1), np.arange(12).reshape(3, 4)),
        (1, (2, 3), (1, 4), [[1, 5, 9], [2, 6, 10]]),
        (11, (), (), 11),
        (11, (1, 1), (99, 99), [[11]]),
        (12, (0, 5), (5, 1), np.zeros((0, 5))),
        (2, (2, 3), (0, 1), [[2, 3, 4], [2, 3, 4]]),
        (0, (3, 3), (1, 2), [[0, 2, 4], [1, 3, 5], [2, 4, 6]]),  # elements in several places
    ],
)
def test_strided_tensors_by_hand(tmp_path, offset, shape, strides, expected):
    found = _read_tensor(tmp_path, tensor(storage(12), offset, shape, strides))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.owndata


@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (1, (12,), (1,)),
        (12, (1,), (1,)),
        (0, (2, 2), (11, 2)),
        (0, (2,), (2**62,)),
        (2**62, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
        (0, [12], (1,)),
        (0, (1,) * 60, (1,) * 60),
        (0, (2**64,), (0,)),
        ("0", (2,), (1,)),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, offset, shape, strides):
    with pytest.raises(UserError, match="damaged or truncated"):
        _read_tensor(tmp_path, tensor(storage(12), offset, shape, strides))


@pytest.mark.parametrize(
    "length, sentence",
    [
        (13, "storage '0' has 48 bytes, not 52"),
        (2**40, "storage '0' has 48 bytes"),
        (2**62, "storage '0' has 48 bytes"),
        (-1, "impossible length"),
        (1.5, "impossible length"),
        (None, "impossible length"),
    ],
)
def test_storages_that_declare_more_than_they_hold_are_refused(tmp_path, length, sentence):
    with pytest.raises(UserError, match=sentence):
        _read_tensor(tmp_path, tensor(storage(length), 0, (2,), (1,)))


@pytest.mark.parametrize("shape", [(10**9,), (10**6, 10**6), (2**62,)])
def test_one_number_repeated_without_end_is_refused(tmp_path, shape):
    with pytest.raises(UserError, match="would need far more memory"):
        _read_tensor(tmp_path, tensor(storage(12), 0, shape, (0,) * len(shape)))


def test_many_copies_of_one_storage_are_refused(tmp_path):
    one = tensor(storage(2**20), 0, (2**20,), (1,))
    content = pickled({f"w{i}": one for i in range(200)})
    with pytest.raises(UserError, match="would need far more memory"):
        _read(tmp_path, torch_archive(content, {"0": b"\0" * 2**22}))


def test_the_byte_order_is_that_of_the_file(tmp_path):
    content = pickled({"w": tensor(storage(3), 0, (3,), (1,))})
    numbers = np.array([1, 2, 3], ">f4").tobytes()
    archive = torch_archive(content, {"0": numbers}, {"x/byteorder": b"big"})
    np.testing.assert_array_equal(_read(tmp_path, archive)["w"], [1, 2, 3])
    with pytest.raises(UserError, match="byte order b'middle' does not exist"):
        _read(tmp_path, torch_archive(content, {"0": numbers}, {"x/byteorder": b"middle"}))


def test_tensors_with_attributes_and_in_parameters_are_those_inside(tmp_path):
    plain = tensor(storage(12), 0, (2,), (1,))
    arguments = (storage(12), 3, (2,), (1,), False, None)
    rebuild = "torch._utils._rebuild_tensor_v2"
    weights = {
        "typed": Call(
            "torch._tensor._rebuild_from_type_v2",
            (Name(rebuild), Name("torch.Tensor"), arguments, {"tag": 1}),
        ),
        "parameter": Call("torch._utils._rebuild_parameter_with_state", (plain, True, None, {})),
        "old": Call("torch._utils._rebuild_tensor", (storage(12), 5, (2,), (1,))),
        "sized": tensor(storage(12), 7, Call("torch.Size", ([2],)), (1,)),
    }
    found = _read(tmp_path, torch_archive(pickled(weights), {"0": _NUMBERS}))
    expected = {"typed": [3, 4], "parameter": [0, 1], "old": [5, 6], "sized": [7, 8]}
    assert {name: array.tolist() for name, array in found.items()} == expected


@pytest.mark.parametrize(
    "described, sentence",
    [
        (Call("absent.Tensor", ()), "its weight 'bad' is an object of 'absent.Tensor'"),
        (Call("torch._utils._rebuild_qtensor", ()), "'torch._utils._rebuild_qtensor', not a plain"),
        (Name("absent.Class"), "an object of 'absent.Class'"),
        (tensor(storage(1, kind="OddStorage"), 0, (1,), (1,)), "'torch.OddStorage'"),
        (tensor(7, 0, (1,), (1,)), "a tensor has no storage"),
        (tensor(storage(1, key=5), 0, (1,), (1,)), "not a storage"),
        (tensor(storage(1, key="9"), 0, (1,), (1,)), "does not contain 'x/data/9'"),
        (tensor(storage(1, key="../../x"), 0, (1,), (1,)), "does not contain"),
        (Persistent(3), "not a storage"),
        (Call("torch._utils._rebuild_tensor_v2", ()), "does not accept"),
    ],
)
def test_strange_weights_are_refused(tmp_path, described, sentence):
    good = tensor(storage(12), 0, (2,), (1,))
    content = pickled({"good": good, "bad": described})
    with pytest.raises(UserError) as caught:
        _read(tmp_path, torch_archive(content, {"0": _NUMBERS}))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "x/../../y", "..\\y", "C:/y", "\\y"])
def test_members_outside_of_the_archive_are_refused(tmp_path, name):
    content = pickled({"w": tensor(storage(12), 0, (2,), (1,))})
    with pytest.raises(UserError, match="outside of the archive's folder: the file is unsafe"):
        _read(tmp_path, torch_archive(content, {"0": _NUMBERS}, {name: b"x"}))


def test_a_zip_bomb_is_refused(tmp_path):
    content = pickled({"w": tensor(storage(2**27), 0, (1,), (1,))})
    bomb = torch_archive(content, {"0": bytes(2**29)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    with pytest.raises(UserError, match="would need far more memory"):
        _read(tmp_path, bomb)


def test_a_size_that_the_table_of_contents_invents_is_refused(tmp_path):
    content = pickled({"w": tensor(storage(12), 0, (2,), (1,))})
    archive = torch_archive(content, {"0": _NUMBERS})
    size, entry = (48).to_bytes(4, "little"), archive.rindex(b"PK\x01\x02")
    assert archive[entry + 20 : entry + 28] == size + size
    forged = archive[: entry + 24] + (2**31).to_bytes(4, "little") + archive[entry + 28 :]
    with pytest.raises(UserError, match="declares more bytes than it can contain"):
        _read(tmp_path, forged)


def test_other_archives_are_named(tmp_path):
    code = torch_archive(b"N.", members={"x/code/model.py": b"pass", "x/constants.pkl": b"N."})
    with pytest.raises(UserError, match="TorchScript"):
        _read(tmp_path, code)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(UserError, match="tar archive"):
        _read(tmp_path, tar.getvalue())
    twice = io.BytesIO()
    with pytest.warns(UserWarning), zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        archive.writestr("x/data.pkl", b"N.")
    with pytest.raises(UserError, match="the same name"):
        _read(tmp_path, twice.getvalue())


def _old_storage(length, view=None, key="a", kind="FloatStorage"):
    return Persistent(("storage", Name(f"torch.{kind}"), key, "cpu", length, view))


def test_the_older_format_by_hand(tmp_path):
    weights = {
        "whole": tensor(_old_storage(12), 2, (3,), (1,)),
        "view": tensor(_old_storage(12, ("v", 4, 5)), 1, (2,), (2,)),
        "long": tensor(_old_storage(2, key="b", kind="LongStorage"), 0, (2,), (1,)),
    }
    long = np.array([5, -6], "<i8").tobytes()
    storages = {"b": (2, long), "a": (12, _NUMBERS)}
    found = _read(tmp_path, legacy_checkpoint(pickled({"state_dict": weights}), storages))
    assert {name: array.tolist() for name, array in found.items()} == {
        "whole": [2, 3, 4],
        "view": [5, 7],
        "long": [5, -6],
    }


@pytest.mark.parametrize(
    "reference, shape, storages, keys",
    [
        (_old_storage(12), (12,), {"a": (11, _NUMBERS)}, None),
        (_old_storage(12), (12,), {"a": (12, _NUMBERS[:-1])}, None),
        (_old_storage(2**61), (12,), {"a": (2**61, _NUMBERS)}, None),
        (_old_storage(12), (12,), {"b": (12, _NUMBERS)}, None),
        (_old_storage(12), (12,), {}, []),
        (_old_storage(12), (12,), {"a": (12, _NUMBERS)}, ["a", "a"]),
        (_old_storage(12), (12,), {"a": (12, _NUMBERS)}, 5),
        (_old_storage(12), (12,), {"a": (12, _NUMBERS)}, [["a"]]),
        (_old_storage(12, ("v", 8, 5)), (2,), {"a": (12, _NUMBERS)}, None),
        (_old_storage(12, ("v", 0, 3)), (4,), {"a": (12, _NUMBERS)}, None),
        (_old_storage(12, "view"), (4,), {"a": (12, _NUMBERS)}, None),
    ],
)
def test_storages_that_are_not_where_they_should_be(tmp_path, reference, shape, storages, keys):
    content = pickled({"w": tensor(reference, 0, shape, (1,))})
    with pytest.raises(UserError, match="damaged or truncated"):
        _read(tmp_path, legacy_checkpoint(content, storages, keys))


def test_a_module_saved_whole_in_the_older_format_is_named(tmp_path):
    module = Persistent(("module", Name("absent.Network"), "network.py", "class Network: ..."))
    content = b"\x80\x02" + pickled(module)[2:-1] + b")\x81}b."
    with pytest.raises(
        UserError, match="an object of 'absent.Network', not a dict of weights: save the module's"
    ):
        _read(tmp_path, legacy_checkpoint(content))
