"""Writes how near the comparisons came, when PARITY_REPORT names a file (see docs/PARITY.md)."""

import json
import os

from fixtures import AGREEMENTS


def pytest_sessionfinish(session):
    """One entry for each operator and reference: comparisons, worst difference, tolerance."""
    path = os.environ.get("PARITY_REPORT")
    if not path:
        return
    rows: dict[tuple[str, str], dict] = {}
    for entry in AGREEMENTS:
        row = rows.setdefault(
            (entry.operator, entry.reference),
            {"operator": entry.operator, "reference": entry.reference, "cases": 0, "worst": 0.0},
        )
        row["cases"] += 1
        row["worst"] = max(row["worst"], entry.worst)
        row["allowed"] = entry.allowed
    with open(path, "w", encoding="utf-8") as file:
        json.dump(list(rows.values()), file, indent=2)
