"""Classes are told by their names, whatever numbers records give them."""

import json

import pytest

from data.errors import UserError
from trainer.categories import (
    FILE,
    describe_pairs,
    load_categories,
    pair_by_name,
    record_categories,
    require_known,
    with_ids_of,
    write_categories,
)


def make(*names, ids=None) -> tuple:
    """Categories by label, with ten times it or the ids given."""
    ids = ids or [10 * label for label in range(1, len(names) + 1)]
    return tuple(
        {"label": label, "id": category_id, "name": name}
        for label, (name, category_id) in enumerate(zip(names, ids, strict=True), start=1)
    )


def labels(theirs, known) -> dict:
    pairs = pair_by_name(theirs, known)
    return {entry["label"]: same and same["label"] for entry, same in pairs}


def test_the_file_holds_what_was_written(tmp_path):
    assert load_categories(str(tmp_path)) == ()
    write_categories(make("cat", "日本"), str(tmp_path))
    assert load_categories(str(tmp_path)) == make("cat", "日本")
    content = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert content[1] == {"label": 2, "id": 20, "name": "日本"}


@pytest.mark.parametrize("content", ["{", "[1]", '[{"label": 1}]', "3"])
def test_a_file_that_is_something_else_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match="is not a list of categories"):
        load_categories(str(tmp_path))


def test_records_without_manifest_go_by_the_labels_seen(tmp_path):
    (tmp_path / "x.record").touch()
    found = record_categories(f"{tmp_path}/x.record", lambda: {2: "dog", 1: ""})
    assert found == ({"label": 1, "id": 1, "name": "1"}, {"label": 2, "id": 2, "name": "dog"})


def test_names_decide_in_any_order_and_with_any_ids():
    assert labels(make("dog", "cat"), make("cat", "dog")) == {1: 2, 2: 1}
    assert labels(make("dog"), make("cat", "dog")) == {1: 2}
    assert labels(make("dog", "cow"), make("cat", "dog")) == {1: 2, 2: None}


def test_a_name_that_occurs_twice_counts_with_its_id():
    known = make("x", "x", "y", ids=[0, 7, 90])
    assert labels(make("x", "x", "y", ids=[0, 7, 90]), known) == {1: 1, 2: 2, 3: 3}
    assert labels(make("y", "x", "x", ids=[1, 7, 8]), known) == {1: 3, 2: 2, 3: None}
    assert labels(make("x", ids=[7]), known) == {1: 2}


def test_numbers_for_all_names_are_labels():
    assert labels(make("1", "2"), make("cat", "dog")) == {1: 1, 2: 2}
    assert labels(make("cat", "dog", "cow"), make("1", "2")) == {1: 1, 2: 2, 3: None}
    digits = make("0", "1", "2", "3")
    assert labels(make("3", "2", "1"), digits) == {1: 4, 2: 3, 3: 2}
    annotations = [{"id": 20, "name": "20"}, {"id": 1, "name": "1"}]
    assert [known for _, known in pair_by_name(annotations, make("cat", "dog"))] == [
        None,
        make("cat")[0],
    ]


def test_strangers_are_refused_by_name():
    pairs = pair_by_name(make("cow", "cat", "horse"), make("cat"))
    with pytest.raises(UserError, match=r"val-\* has classes .* in runs/m does not know: 'cow', "):
        require_known(pairs, "val-*", "runs/m")
    require_known(pairs[1:2], "val-*", "runs/m")


def test_pairs_are_listed_where_numbers_differ():
    known = make("cat", "dog")
    assert describe_pairs(pair_by_name(known, known)) == ""
    assert describe_pairs(pair_by_name(make("dog", "cat"), known)) == (
        "classes matched by name: dog 1 (id 10) -> 2 (id 20), cat 2 (id 20) -> 1 (id 10)"
    )
    assert describe_pairs(pair_by_name([{"id": 20, "name": "dog"}], known)) == ""
    annotations = [{"id": 5, "name": "dog"}]
    assert describe_pairs(pair_by_name(annotations, known)) == (
        "classes matched by name: dog (id 5) -> 2 (id 20)"
    )


def test_results_carry_the_ids_of_the_evaluation_set():
    known = make("cat", "dog", "cow", ids=[1, 2, 3])
    ids = [entry["id"] for entry in with_ids_of(known, pair_by_name(make("dog", ids=[1]), known))]
    assert ids == [None, 1, 3], "id 1 is a dog there, so that cats have none"
