"""The meaning of the network's labels: categories.json in the model_dir, and matching by name.

A category is {"label", "id", "name"}: the network's label from 1 on, COCO's id, and the name, which
is the label's number if the records have no names. categories.json is a list of them by label.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from data import files
from data.errors import UserError
from data.manifest import find_manifest

FILE = "categories.json"

Category = Mapping[str, object]
Pair = tuple[Category, Category | None]


def write_categories(categories: Sequence[Category], folder: str) -> None:
    """Writes categories.json, either completely or not at all."""
    with files.whole_file(os.path.join(folder, FILE)) as file:
        json.dump(list(categories), file, indent=1, ensure_ascii=False)
        file.write("\n")


def load_categories(folder: str) -> tuple[Category, ...]:
    """Reads categories.json; empty if there is none.

    Raises:
        UserError: it is not a list of categories.
    """
    path = os.path.join(folder, FILE)
    if not files.exists(path):
        return ()
    try:
        with files.open_file(path) as file:
            content = json.load(file)
        return tuple({key: entry[key] for key in ("label", "id", "name")} for entry in content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a list of categories ({error}): restore the file that was written "
            "with the checkpoints, or delete it to use labels only."
        ) from None


def record_categories(file_pattern: str, names: Callable[[], Mapping[int, str]]) -> tuple:
    """Returns the categories of records: their manifest's, or else those of the labels found.

    Args:
        file_pattern: as for `data.manifest.expand_pattern`.
        names: returns the name of each label, "" if the records have none; called only without a
            manifest.
    """
    if manifest := find_manifest(file_pattern):
        return tuple(manifest.categories)
    return tuple(
        {"label": label, "id": label, "name": name or str(label)}
        for label, name in sorted(names().items())
    )


def pair_by_name(theirs: Iterable[Category], known: Sequence[Category]) -> list[Pair]:
    """Pairs each of their categories with the known one of the same name, or None.

    If a name occurs twice, its id is compared too. If all names of one side are just numbers,
    labels are compared.
    """
    theirs = list(theirs)
    numbered = any(all(map(_has_no_name, entries)) for entries in (theirs, known))
    twice = {name for entries in (theirs, known) for name in _repeated(entries)}

    def key(category: Category) -> tuple:
        name = category["name"]
        return (name, category["id"]) if name in twice else (name,)

    by_key = {key(category): category for category in known}
    by_label = {category["label"]: category for category in known}
    return [
        (entry, by_label.get(_number(entry)) if numbered else by_key.get(key(entry)))
        for entry in theirs
    ]


def require_known(pairs: Iterable[Pair], records: str, model: str) -> None:
    """Raises a UserError if the records have categories that a model does not know."""
    pairs = list(pairs)
    if strangers := [theirs for theirs, known in pairs if known is None]:
        raise UserError(
            f"{records} has classes that the model in {model} does not know: "
            f"{list_names(strangers)}; use records with its classes ({FILE} there lists them), or "
            "train on these records in another --model_dir, with --init_checkpoint to start from "
            "its weights."
        )


def describe_pairs(pairs: Iterable[Pair]) -> str:
    """Describes the pairs in a line if any differ in label or id; "" otherwise."""
    pairs = [(theirs, known) for theirs, known in pairs if known is not None]
    if not any(_differ(theirs, known) for theirs, known in pairs):
        return ""
    listed = (f"{known['name']} {_spell(theirs)} -> {_spell(known)}" for theirs, known in pairs)
    return "classes matched by name: " + ", ".join(listed)


def with_ids_of(known: Iterable[Category], pairs: Iterable[Pair]) -> list[dict]:
    """Gives the known categories the ids that records or annotations use for their names.

    Categories that do not occur there keep their own id, unless it means another category there;
    then it is None, and detections of that category cannot be named.
    """
    pairs = list(pairs)
    taken = {theirs["id"] for theirs, _ in pairs}
    ids = {category["label"]: theirs["id"] for theirs, category in pairs if category}

    def id_of(category: Category) -> int | None:
        own = None if category["id"] in taken else category["id"]
        return ids.get(category["label"], own)

    return [{**category, "id": id_of(category)} for category in known]


def list_names(categories: Iterable[Category]) -> str:
    """Lists the names for a sentence."""
    return ", ".join(repr(category["name"]) for category in categories)


def _repeated(categories: Iterable[Category]) -> list[str]:
    counts = collections.Counter(category["name"] for category in categories)
    return [name for name, count in counts.items() if count > 1]


def _number(category: Category) -> int:
    return category.get("label", category["id"])


def _has_no_name(category: Category) -> bool:
    return category["name"] in ("", str(_number(category)))


def _differ(theirs: Category, known: Category) -> bool:
    return any(theirs[number] != known[number] for number in ("label", "id") if number in theirs)


def _spell(category: Category) -> str:
    label = f"{category['label']} " if "label" in category else ""
    return f"{label}(id {category['id']})"
