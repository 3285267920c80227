"""The messages of an import."""

from __future__ import annotations

from collections.abc import Iterator

from data.config import DataConfig
from model.config import ModelConfig
from model.importers.translate import Translation

_NAMED = 4


def summarise(result: Translation, model: ModelConfig, data: DataConfig) -> Iterator[str]:
    """Yields the lines to print: counts, and settings that differ from those of the weights."""
    yield f"Weights of {result.family.name}:"
    yield (
        f"  tensors: {len(result.matched)} unchanged, {len(result.reshaped)} reordered, "
        f"{len(result.skipped)} left out on purpose, {len(result.unexpected)} unexpected"
    )
    yield (
        f"  variables: {len(result.values)} with values, {len(result.missing)} missing, "
        f"{len(result.initial)} with initial values"
    )
    family = result.family
    yield (
        f"  read as: images in {family.channel_order} order, batch norm epsilon "
        f"{family.batch_norm_epsilon:g} (--channel_order and --batch_norm_epsilon override)"
    )
    if family.note:
        yield f"Note: {family.note}"
    for name, trained_with in result.family.settings.items():
        ours = getattr(model if hasattr(model, name) else data, name)
        if ours != trained_with:
            yield (
                f"Warning: these weights were trained with --{_format(name, trained_with)}, but "
                f"the network has --{_format(name, ours)}; its outputs will differ from theirs."
            )


def itemise(result: Translation) -> Iterator[str]:
    """Yields a line for each tensor of the file and each variable without a value."""
    for title, pairs in (("matched", result.matched), ("reshaped", result.reshaped)):
        yield from (f"{title}\t{name}\t{path}" for name, path in pairs)
    for title, reasons in (("skipped", result.skipped), ("unexpected", result.unexpected)):
        yield from (f"{title}\t{name}\t{reason}" for name, reason in reasons.items())
    yield from (f"missing\t\t{path}" for path in result.missing)
    yield from (f"initial\t\t{path}" for path in result.initial)


def explain_unusable(result: Translation, source: str) -> str:
    """Explains in a sentence which tensors would give invalid outputs, and what to do."""
    named = [f"{name} ({reason})" for name, reason in result.unusable.items()]
    return (
        f"{source} contains tensors that would give invalid outputs: {_list(named)}; get the "
        "weights from another source, or give the --batch_norm_epsilon that they were trained "
        "with."
    )


def explain_refusal(result: Translation, source: str) -> str:
    """Explains in a sentence what does not fit, and what to do."""
    parts = []
    if result.unexpected:
        named = [f"{name} ({reason})" for name, reason in result.unexpected.items()]
        parts.append(f"no variables for {_list(named)}")
    if result.missing:
        parts.append(f"no tensors for {_list(result.missing)}")
    advice = (
        "use the flags of the network that it was made for, or give --allow_partial to ignore "
        "these tensors and keep the initial values of variables without tensors"
    )
    if not result.unexpected and all(path.startswith("maskiou_head/") for path in result.missing):
        advice = (
            "give --system=mask_rcnn to use the weights without that head, or --allow_partial to "
            "train the head from its initial values"
        )
    return f"{source} fits this network only partly: {'; '.join(parts)}; {advice}."


def _list(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _format(name: str, value) -> str:
    if isinstance(value, bool):
        return name if value else f"no{name}"
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
