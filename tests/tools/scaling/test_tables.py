"""Tables of estimates, and their places in a page."""

import json

import pytest

from data.errors import UserError
from tools.scaling.estimates import read_inputs
from tools.scaling.tables import fill_page, make_tables


def test_a_part_of_prediction_only_counts_in_the_sum(repository):
    folder = repository / "docs" / "scaling"
    work, inputs = read_inputs(str(folder / "work.json"), str(folder / "inputs.json"))
    before = make_tables(work, inputs)["work"].splitlines()
    work = json.loads(json.dumps(work))
    work["predict"]["forward"]["views"] = [7e9, 5e6]
    after = make_tables(work, inputs)["work"].splitlines()
    assert "| views | 0.0 | 7.0 | 0.0 | 0.0 | 0% | 5 | 0 | – |" in after
    sums = [float(lines[-1].split(" | ")[2]) for lines in (before, after)]
    assert sums[1] - sums[0] == pytest.approx(7)


def test_a_table_replaces_what_was_in_its_place():
    page = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    filled = fill_page(page, {"x": r"| \1 |", "y": "new"})
    assert filled == ("a\n<!-- x -->\n| \\1 |\n<!-- end -->\nb\n<!-- y -->\nnew\n<!-- end -->\n")
    assert fill_page(filled, {"x": "old", "y": "new"}) == filled.replace(r"| \1 |", "old")


def test_a_page_without_the_place_is_refused():
    with pytest.raises(UserError, match="<!-- x --> and <!-- end -->"):
        fill_page("<!-- x -->\n", {"x": "t"})
