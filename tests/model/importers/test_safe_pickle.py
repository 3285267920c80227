"""The interpreter of pickles: Python's results on plain objects, deaf to attacks, within limits."""

import datetime
import decimal
import enum
import os
import pickle
import time
from collections import OrderedDict

import pytest
from crafted_files import Call, Name, pickled
from hypothesis import given, settings
from hypothesis import strategies as st

from model.importers import safe_pickle
from model.importers.pickle_objects import Global, Stub, container_builders
from model.importers.refusals import Budget, Refusal
from model.importers.safe_pickle import load_pickle

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
_KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
_OBJECTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(_KEYS, inner)
        | st.dictionaries(_KEYS, inner).map(OrderedDict)
    ),
)


class _Colour(enum.Enum):
    RED = 1


class _Outer:
    class Inner:
        def method(self):
            """Pickled as getattr(_Outer.Inner, "method") up to protocol 3."""


def _load(content):
    budget = Budget(len(content))
    return load_pickle(content, 0, container_builders(budget))[0]


@given(thing=_OBJECTS, protocol=st.integers(0, 5))
@settings(deadline=None)
def test_plain_objects_equal_those_of_python(thing, protocol):
    content = pickle.dumps(thing, protocol)
    assert _load(content) == pickle.loads(content)


def test_a_pickle_worked_by_hand():
    content = b"\x80\x02}q\x00(U\x01aK\x01U\x01bh\x00U\x01c](K\x02K\x03eu.after"
    loaded, end = load_pickle(content, 0, {})
    assert list(loaded) == ["a", "b", "c"] and loaded["b"] is loaded
    assert loaded["a"] == 1 and loaded["c"] == [2, 3]
    assert content[end:] == b"after"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "thing",
    [datetime.datetime(2020, 1, 2), decimal.Decimal("1.5"), _Colour.RED, _Outer.Inner, 1j, {1}],
    ids=str,
)
def test_unknown_objects_become_stubs_and_disturb_nothing(thing, protocol):
    loaded = _load(pickle.dumps({"before": 1, "thing": [thing, thing], "after": 2}, protocol))
    assert loaded["before"] == 1 and loaded["after"] == 2
    assert all(isinstance(stub, Stub) for stub in loaded["thing"])


def test_stubs_are_neither_imported_nor_called(monkeypatch):
    monkeypatch.setattr("builtins.__import__", None)
    swallowing = b"(cabsent\nThing\noq\x00(K\x01K\x02eh\x00(K\x01K\x02uh\x00}b."
    assert _load(swallowing).name == "absent.Thing"
    called_twice = Call("absent.make", (Call("functools.partial", (Name("absent.f"),)),))
    assert type(_load(pickled(called_twice))) is Stub
    assert type(_load(pickled(Name("absent.f")))) is Global


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("os.path", "join"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "execfile"),
        ("builtins", "getattr.__class__"),
        ("sys", "modules"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("io", "open"),
        ("pickle", "loads"),
    ],
    ids=".".join,
)
@pytest.mark.parametrize("spelling", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_names_that_only_attacks_need_are_refused(name, spelling, tmp_path):
    module, function = name
    target = tmp_path / "made"
    argument = pickle.dumps((f"touch {target}",), 2)[2:-1]
    content = {
        "GLOBAL": f"c{module}\n{function}\n".encode() + argument + b"R.",
        "STACK_GLOBAL": pickle.dumps(module, 4)[2:-1]
        + pickle.dumps(function, 4)[2:-1]
        + b"\x93"
        + argument
        + b"R.",
        "INST": b"(" + argument + f"i{module}\n{function}\n.".encode(),
    }[spelling]
    with pytest.raises(Refusal, match="unsafe; delete it"):
        _load(content)
    assert not target.exists()


def test_an_attack_that_works_on_python_does_nothing_here(tmp_path):
    class Attack:
        def __init__(self, target):
            self.target = target

        def __reduce__(self):
            return os.mkdir, (str(self.target),)

    content = pickle.dumps(Attack(tmp_path / "made"))
    with pytest.raises(Refusal, match="'posix.mkdir'"):
        _load(content)
    assert not (tmp_path / "made").exists()
    pickle.loads(content)
    assert (tmp_path / "made").exists(), "the attack is none"


@pytest.mark.parametrize(
    "content",
    [
        b"T\xff\xff\xff\x7f.",  # two gigabytes of text
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\x7f\x01.",
        b"T\xff\xff\xff\xff.",  # minus one
        b"h\x07.",  # recalls what was not stored
        b"R.",
        b"t.",
        b"(K\x01u.",
        b"}(K\x01u.",
        b"K\x01)R.",  # calls a number
        b"K\x01}b.",
        b"K\x01K\x02a.",
        b"Px\n.",
        b"\x97.",  # a buffer from outside
        b"\x82\x01.",  # an extension code
        b"I" + b"9" * 10_000 + b"\n.",
        b"L" + b"9" * 10_000 + b"L\n.",
        b"S'x\n.",
        b"]}K\x01s.",
        b"}](K\x01lK\x01s.",  # a list as a key
        b"",
        b"\x80\x02",
    ],
)
def test_malformed_pickles_end_at_once(content):
    start = time.process_time()
    with pytest.raises((Refusal, ValueError)):
        _load(content)
    assert time.process_time() - start < 1


def test_a_memo_takes_no_more_than_what_is_in_it():
    assert _load(b"]r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == []  # entry 2^32 - 1


def test_deep_nesting_is_no_danger():
    depth = 200_000
    assert _load(b"]" * depth + b"a" * (depth - 1) + b".") != []
    assert _load(b")" + b"\x85" * depth + b".") != ()
    with pytest.raises(Refusal, match="key of a dict is too large"):
        _load(b"})" + b"\x85" * depth + b"K\x01s.")
    with pytest.raises(Refusal, match="key of a dict is too large"):
        _load(b"}(" + b"K\x01" * 1000 + b"tK\x01s.")


def test_doubling_lists_take_no_more_than_they_say():
    # Sixty lists, each with the one before twice: 2^60 leaves to whoever walks through them.
    content = b"]" + b"".join(b"q\x00](h\x00h\x00e" for _ in range(60)) + b"."
    assert len(_load(content)) == 2


def test_repeated_copies_are_refused_as_a_bomb():
    text = pickle.dumps("x" * 2**20, 2)[2:-1].replace(b"q\x00", b"q\x01")
    encode = b"c_codecs\nencode\nh\x01\x85R"
    with pytest.raises(Refusal, match="would need far more memory"):
        _load(text + encode * 1000 + b".")


def test_endless_pickles_are_refused(monkeypatch):
    monkeypatch.setattr(safe_pickle, "_MAX_STEPS", 1000)
    assert _load(b"N0" * 499 + b"N.") is None
    with pytest.raises(Refusal, match="more than 1,000 instructions"):
        _load(b"N0" * 500 + b"N.")


@given(content=st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_an_object_or_a_refusal(content):
    try:
        _load(content)
    except (Refusal, ValueError, TypeError, OverflowError) as error:
        assert str(error)
