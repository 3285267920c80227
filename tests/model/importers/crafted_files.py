"""Weight files written byte by byte, for content that no honest program would save."""

import io
import pickle
import zipfile
from typing import Any, NamedTuple


class Name(NamedTuple):
    """A global of a pickle, such as Name("os.system")."""

    full_name: str


class Call(NamedTuple):
    """A call of a global, REDUCE in a pickle."""

    full_name: str
    arguments: tuple
    state: Any = None


class Persistent(NamedTuple):
    """A reference to something outside of the pickle."""

    id: Any


def pickled(thing):
    """A pickle of plain objects and of the above, protocol 2."""
    return b"\x80\x02" + _written(thing) + b"."


def _written(thing):
    if isinstance(thing, Name):
        module, _, name = thing.full_name.rpartition(".")
        return f"c{module}\n{name}\n".encode()
    if isinstance(thing, Call):
        state = b"" if thing.state is None else _written(thing.state) + b"b"
        return _written(Name(thing.full_name)) + _written(thing.arguments) + b"R" + state
    if isinstance(thing, Persistent):
        return _written(thing.id) + b"Q"
    if isinstance(thing, tuple | list):
        opcode = b"t" if isinstance(thing, tuple) else b"l"
        return b"(" + b"".join(map(_written, thing)) + opcode
    if isinstance(thing, dict):
        return b"(" + b"".join(_written(part) for item in thing.items() for part in item) + b"d"
    return pickle.dumps(thing, 2)[2:-1]


def storage(length, key="0", kind="FloatStorage"):
    """The reference to a storage, as in the zip format."""
    return Persistent(("storage", Name(f"torch.{kind}"), key, "cpu", length))


def tensor(reference, offset, shape, strides):
    """A tensor on a storage."""
    empty = Call("collections.OrderedDict", ())
    return Call(
        "torch._utils._rebuild_tensor_v2", (reference, offset, shape, strides, False, empty)
    )


def torch_archive(content, storages=(), members=(), compression=zipfile.ZIP_STORED):
    """A checkpoint in PyTorch's zip format, of a pickle's bytes and of storages by key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("x/data.pkl", content)
        for key, data in dict(storages).items():
            archive.writestr(f"x/data/{key}", data)
        for name, data in dict(members).items():
            archive.writestr(name, data)
    return file.getvalue()


def legacy_checkpoint(content, storages=(), keys=None):
    """A checkpoint in PyTorch's older format, of storages (length, bytes) by key."""
    storages = dict(storages)
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    pickles = [*map(pickled, head), content, pickled(list(storages) if keys is None else keys)]
    runs = [length.to_bytes(8, "little") + data for length, data in storages.values()]
    return b"".join(pickles + runs)
