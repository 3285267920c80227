"""Reading the numbers that independent implementations produced, and comparing with them.

The folder is named by PARITY_DIR (default ../shared/parity). Its manifest.json lists files; a
file's arrays are named CASE/ARRAY, and each case may have parameters. Tests take every shape,
threshold and tolerance from there, so that another folder of the same layout tests them as well.

The references write boxes x1, y1, x2, y2 and images channels first; `yx` and `channels_last` turn
them into this project's order.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(os.environ.get("PARITY_DIR", ROOT.parent / "shared" / "parity"))


class Case:
    """One case of a file: `case["array"]`, `"array" in case`, `case.params`.

    Attributes:
        name: the first part of its arrays' names; empty for arrays that all cases share.
        params: its scalars, {} if it has none.
    """

    def __init__(self, name: str, arrays, docs: dict[str, str], params: dict):
        self.name, self.params = name, params
        self._arrays, self._docs, self._names = arrays, docs, set(arrays.files)

    def _key(self, array: str) -> str:
        return f"{self.name}/{array}" if self.name else array

    def __contains__(self, array: str) -> bool:
        return self._key(array) in self._names

    def __getitem__(self, array: str) -> np.ndarray:
        return self._arrays[self._key(array)]

    def doc(self, array: str) -> str:
        """What the manifest says of an array."""
        return self._docs[self._key(array)]

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays of the case whose names begin so, by the rest of their names."""
        start = self._key(prefix)
        names = [name for name in self._arrays.files if name.startswith(start)]
        return {name.removeprefix(start): self._arrays[name] for name in names}

    def __repr__(self) -> str:
        return self.name or "all"


class Fixture:
    """One file of the folder.

    Attributes:
        tolerance: what its manifest entry says of tolerances.
        cases: by name, those of arrays without a case under "".
    """

    def __init__(self, file: str):
        self.file = file
        entry = _manifest()["files"][file]
        arrays = np.load(FOLDER / file, allow_pickle=False)
        names = set(arrays.files)
        self.tolerance = entry["tolerance"]
        params = entry["params"]
        found = sorted({name.split("/")[0] if "/" in name else "" for name in names} | set(params))
        docs = {name: described["doc"] for name, described in entry["arrays"].items()}
        self.cases = {name: Case(name, arrays, docs, params.get(name, {})) for name in found}

    def __getitem__(self, case: str) -> Case:
        return self.cases[case]

    def cases_with(self, *arrays: str) -> list[Case]:
        """The cases that have all of these arrays; at least one."""
        chosen = [case for case in self.cases.values() if all(name in case for name in arrays)]
        assert chosen, f"{self.file} has no case with {arrays}"
        return chosen


@functools.cache
def _manifest() -> dict:
    with open(FOLDER / "manifest.json", encoding="utf-8") as file:
        return json.load(file)


def fixture(file: str) -> Fixture:
    """Opens a file; the whole test module skips, with the reason, where the folder is absent."""
    if not FOLDER.is_dir():
        pytest.skip(
            f"needs the reference numbers in {FOLDER}, which is absent; PARITY_DIR names it",
            allow_module_level=True,
        )
    return Fixture(file)


def key_list(name: str) -> dict:
    """The names and shapes of a published checkpoint: a file of the folder's keys/."""
    with open(FOLDER / "keys" / f"{name}.json", encoding="utf-8") as file:
        return json.load(file)


def yx(values: np.ndarray) -> np.ndarray:
    """Boxes x1, y1, x2, y2 → y1, x1, y2, x2, and deltas dx, dy, dw, dh → dy, dx, dh, dw."""
    return np.ascontiguousarray(values[..., [1, 0, 3, 2]])


def channels_last(values: np.ndarray) -> np.ndarray:
    """[N, C, H, W] → [N, H, W, C]."""
    return np.ascontiguousarray(np.moveaxis(values, 1, -1))


class Agreement(NamedTuple):
    """How far one comparison's numbers were apart at most, for docs/PARITY.md."""

    operator: str
    reference: str
    worst: float
    allowed: str


AGREEMENTS: list[Agreement] = []


def agree(actual, expected, operator: str, reference: str, *, atol: float = 0.0, rtol: float = 0.0):
    """Asserts |actual - expected| <= atol + rtol |expected| and keeps the worst difference.

    Args:
        actual: ours.
        expected: the reference's, of the same shape.
        operator: what is compared, such as "box decode": a row of docs/PARITY.md.
        reference: whose number it is: d2, tv, mm, ms or pc.
        atol: absolute tolerance; with `rtol` 0 too the two must be equal.
        rtol: relative tolerance.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{operator}, {reference}: {actual.shape}"
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    excess = difference - rtol * np.abs(expected.astype(np.float64))
    worst = float(difference.max()) if difference.size else 0.0
    allowed = " + ".join(
        text for text in (f"{atol:g}" * (atol > 0), f"{rtol:g} rel." * (rtol > 0)) if text
    )
    AGREEMENTS.append(Agreement(operator, reference, worst, allowed or "exact"))
    assert not np.isnan(difference).any(), f"{operator}, {reference}: not a number"
    assert (excess <= atol).all(), (
        f"{operator}, {reference}: {int((excess > atol).sum())} of {difference.size} differ by "
        f"more than {allowed or '0'}, at worst {worst:g}"
    )
