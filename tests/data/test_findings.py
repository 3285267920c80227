"""What a conversion leaves out and warns about."""

import pytest

from data.errors import UserError
from data.findings import SkippedItems, Warnings, first_reason, format_warning


def test_what_is_wrong_stops_or_is_written_down():
    with pytest.raises(UserError, match="^annotation 5 of image 7: it is odd; .*skip"):
        SkippedItems(tolerate=False).add_annotation("it is odd", 5, 7)
    skipped = SkippedItems(tolerate=True)
    assert first_reason(skipped.items) == ""
    skipped.add_annotation("it is odd", 5, 7)
    assert first_reason(skipped.items) == ", the first because it is odd (annotation 5 of image 7)"
    skipped.add_image("it is gone", 8, "a.jpg")
    assert first_reason(skipped.items) == ", the first because it is gone (image 8)"


def test_warnings_are_counted_by_kind_with_the_first_places():
    first, second = Warnings(), Warnings()
    for number in range(4):
        first.add("it is odd", f"annotation {number}")
        second.add("it is odd", f"annotation {10 + number}")
    second.add("nothing is there")
    lines = [format_warning(entry) for entry in Warnings(first.entries, second.entries).entries]
    assert lines == [
        "Warning: it is odd: annotation 0, annotation 1, annotation 2, annotation 3, annotation 10 "
        "and 3 more.",
        "Warning: nothing is there.",
    ]
    assert first.entries[0]["count"] == 4
