"""Writes how near the comparisons came, when PARITY_REPORT names a file (see docs/PARITY.md)."""

import os

from fixtures import AGREEMENTS

HEAD = (
    "| operator | reference | comparisons | worst difference | allowed |\n"
    "| --- | --- | --- | --- | --- |\n"
)


def pytest_sessionfinish(session):
    """A table of Markdown with a row for each operator and reference."""
    path = os.environ.get("PARITY_REPORT")
    if not path:
        return
    rows: dict[tuple[str, str], list] = {}
    for entry in AGREEMENTS:
        row = rows.setdefault((entry.operator, entry.reference), [0, 0.0, entry.allowed])
        row[0] += 1
        row[1] = max(row[1], entry.worst)
    with open(path, "w", encoding="utf-8") as file:
        file.write(HEAD)
        for (operator, reference), (count, worst, allowed) in sorted(rows.items()):
            worst_text = f"{worst:.2g}" if worst else "0"
            file.write(f"| {operator} | {reference} | {count} | {worst_text} | {allowed} |\n")
