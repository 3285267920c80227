"""The lock files: exact versions, one for each package on each Python, and all extras."""

import ast
import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORE, EXTRAS = "requirements.lock", "requirements-extras.lock"


def read(name):
    """The requirements of a lock file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def locked(requirements, python):
    """The packages for one Python on Linux, each with its version."""
    environment = {"python_version": python, "sys_platform": "linux"}
    chosen = [each for each in requirements if not each.marker or each.marker.evaluate(environment)]
    names = [canonicalize_name(each.name) for each in chosen]
    assert len(names) == len(set(names)), sorted(names)
    return {name: str(each.specifier).lstrip("=") for name, each in zip(names, chosen, strict=True)}


@pytest.mark.parametrize("name", [CORE, EXTRAS])
def test_versions_are_exact(name):
    assert all(re.fullmatch(r"==[\w.]+", str(each.specifier)) for each in read(name))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_extras_add_to_the_core(python):
    assert locked([*read(CORE), *read(EXTRAS)], python)


def test_every_extra_is_locked():
    (table,) = (
        node.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "extras_require"
    )
    versions = locked([*read(CORE), *read(EXTRAS)], "3.11")
    for extra, requirements in ast.literal_eval(table).items():
        for each in map(Requirement, requirements):
            if extra != "gpu":  # takes the place of tensorflow-cpu
                assert each.specifier.contains(versions[canonicalize_name(each.name)])
