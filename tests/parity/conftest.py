"""Gradients as training has them, and how near the comparisons came (see docs/PARITY.md)."""

import os
from collections import defaultdict

import pytest
from fixtures import AGREEMENTS

from model.roi_align import make_gradient_exact

HEAD = (
    "| operator | comparisons | worst difference by reference | allowed |\n"
    "| --- | --- | --- | --- |\n"
)


@pytest.fixture(scope="session", autouse=True)
def exact_gradients():
    """Once, before the first test here."""
    make_gradient_exact()


def pytest_sessionfinish(session):
    """A table of Markdown with a row for each operator, where PARITY_REPORT names a file."""
    path = os.environ.get("PARITY_REPORT")
    if not path:
        return
    operators = defaultdict(list)
    for entry in AGREEMENTS:
        operators[entry.operator].append(entry)
    with open(path, "w", encoding="utf-8") as file:
        file.write(HEAD)
        for operator, entries in sorted(operators.items()):
            worst = defaultdict(float)
            for entry in entries:
                worst[entry.reference] = max(worst[entry.reference], entry.worst)
            cells = [f"{name} {number:.1g}" for name, number in sorted(worst.items())]
            allowed = " or ".join(sorted({entry.allowed for entry in entries})[:2])
            file.write(f"| {operator} | {len(entries)} | {' · '.join(cells)} | {allowed} |\n")
