"""Markdown tables of `docs/SCALING.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from data.errors import UserError
from tools.scaling.estimates import MACHINES, Estimates, Input, Range

_PLACE = "<!-- {} -->"


def make_tables(work: Mapping, inputs: Mapping[str, Input]) -> dict[str, str]:
    """Makes all tables.

    Raises:
        UserError: a number is missing from one of the two.
    """
    estimates = Estimates(work, inputs)
    try:
        return {
            "work": _work(estimates),
            "bytes": _bytes(estimates),
            "machines": _machines(estimates),
            "hosts": _hosts(estimates),
            "costs": _costs(estimates),
            "published": _published(estimates),
            "inputs": _inputs(estimates),
        }
    except KeyError as error:
        raise UserError(f"{error} is missing from --work or --inputs.") from None
    except (AttributeError, TypeError, ValueError):
        raise UserError("--work is not a file of --count; count again.") from None


def fill_page(page: str, tables: Mapping[str, str]) -> str:
    """Puts each table between the lines `<!-- NAME -->` and `<!-- end -->` of a page.

    Raises:
        UserError: the page lacks the lines of a table.
    """
    for name, table in tables.items():
        begin, end = _PLACE.format(name), _PLACE.format("end")
        place = re.compile(f"{begin}\n.*?{end}", re.DOTALL)
        if not place.search(page):
            raise UserError(f"the page has no lines {begin} and {end} for a table.")
        content = f"{begin}\n{table}\n{end}"
        page = place.sub(lambda _, content=content: content, page, count=1)
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rules = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))


def _short(number: float, digits: int = 3) -> str:
    """Formats with this many significant digits, but without zeros in place of others."""
    return f"{number:,.0f}" if abs(number) >= 10 ** (digits - 1) else f"{number:.{digits}g}"


def _span(values: Range) -> str:
    low, high = (_short(value, 2) for value in values)
    return low if low == high else f"{low}–{high}"


def _work(estimates: Estimates) -> str:
    work = estimates.work
    passes = (work["predict"]["forward"], work["train"]["forward"], work["train"]["backward"])
    parts = {part: work["weights"].get(part, 0) for counted in passes for part in counted}

    def row(part: str) -> tuple[float, ...]:
        flops, moved = zip(*(counted.get(part, (0, 0)) for counted in passes), strict=True)
        return parts[part], *flops, moved[0], moved[1] + moved[2]

    rows = {part: row(part) for part in parts}
    rows = dict(sorted(rows.items(), key=lambda each: -each[1][2]))
    total = tuple(map(sum, zip(*rows.values(), strict=True)))
    whole = total[2] + total[3]

    def cells(part: str, numbers: tuple[float, ...]) -> list[str]:
        weights, predict, forward, backward, read, moved = numbers
        flops = forward + backward
        return [
            part,
            f"{weights / 1e6:.1f}",
            *(f"{value / 1e9:.1f}" for value in (predict, forward, backward)),
            f"{flops / whole:.0%}",
            *(f"{value / 1e6:.0f}" for value in (read, moved)),
            f"{flops / moved:.0f}" if moved else "–",
        ]

    head = ["part", "weights, M", "prediction, GFLOP", "training forward", "backward", "share"]
    head += ["prediction, MB", "training, MB", "FLOP/byte"]
    return _table(head, [*(cells(*each) for each in rows.items()), cells("all", total)])


def _bytes(estimates: Estimates) -> str:
    sizes, saved = estimates.work["bytes"], estimates.work["checkpoint_bytes"]
    images = estimates.get("images")
    return _table(
        ["what", "size"],
        [
            ["a record: JPEG, masks, boxes", f"{sizes['record'] / 1e3:.0f} kB"],
            ["an image on the device, uint8", f"{sizes['image'] / 1e6:.2f} MB"],
            ["its labels on the device", f"{sizes['labels'] / 1e6:.2f} MB"],
            ["a checkpoint, with momentum", f"{saved / 1e6:.0f} MB"],
            ["read in the whole training", f"{sizes['record'] * images / 1e9:.0f} GB"],
        ],
    )


def _machines(estimates: Estimates) -> str:
    rows = []
    for machine in MACHINES:
        rates = estimates.training_rate(machine)
        peak = machine.chips * estimates.get(f"{machine.chip}.peak_tflops") * 1e12
        alone = machine.chips * estimates.rate_per_chip("train", machine.chip).high
        rows.append([
            machine.name,
            str(machine.batch),
            _span(estimates.rate_per_chip("train", machine.chip)),
            f"{estimates.reduction_seconds(machine) * 1e3:.1f}",
            _span(rates),
            f"{rates.high / alone:.0%}",
            f"{rates.high * estimates.flops('train') / peak:.0%}",
        ])  # fmt: skip
    head = ["machine", "batch", "images/s of a chip", "gradient sums, ms", "images/s"]
    return _table([*head, "of chips alone", "of peak"], rows)


def _hosts(estimates: Estimates) -> str:
    sizes, rows = estimates.work["bytes"], []
    for machine in MACHINES:
        rate = estimates.training_rate(machine).high / machine.hosts
        needed, usable = estimates.vcpus_needed(rate), estimates.usable_vcpus(machine)
        total = rate * machine.hosts
        rows.append([
            machine.name,
            _short(rate),
            _span(needed),
            f"{usable:.0f}",
            "yes" if needed.high > usable else "no",
            _short(needed.high / estimates.get("usable_vcpus"), 2),
            f"{estimates.service_hosts(total)}",
            f"{rate * sizes['record'] / 1e6:.0f}",
            f"{rate * (sizes['image'] + sizes['labels']) / 1e6:,.0f}",
        ])  # fmt: skip
    head = ["machine", "images/s per host", "vCPUs needed", "usable vCPUs", "service needed"]
    head += ["needed below, vCPUs", "hosts for all"]
    return _table([*head, "read, MB/s", "to devices, MB/s"], rows)


def _costs(estimates: Estimates) -> str:
    rows = []
    for machine in MACHINES:
        total = estimates.total_hours(machine)
        training = estimates.training_hours(machine)
        rows.append([
            machine.name,
            _span(training),
            _span(estimates.evaluation_hours(machine)),
            _span(estimates.pasting_hours(machine)),
            _span(estimates.saving_hours(machine)),
            _span(total),
            _span(Range(*(estimates.usd(machine, hours) for hours in training))),
            _span(Range(*(estimates.usd(machine, hours) for hours in total))),
        ])  # fmt: skip
    head = ["machine", "training, h", "evaluations, h", "of them pasting", "saving, h", "all, h"]
    return _table([*head, "training, USD", "all, USD"], rows)


def _published(estimates: Estimates) -> str:
    get, work = estimates.get, estimates.flops("train")
    without_maskiou = estimates.flops("train", without=("maskiou_head",))
    rows = [
        ("Detectron2, 8 × V100, float32", 16 / get("detectron2.seconds_per_step"), 8, "v100",
         without_maskiou, get("detectron2.memory_gb") / 2),
        ("tensorpack, 8 × V100, float32", get("tensorpack.images_per_second"), 8, "v100",
         without_maskiou, None),
        ("this project, 1 × H200, bfloat16", get("h200.train_images_per_second"), 1, "h200", work,
         get("ours.memory_gb") / 4),
    ]  # fmt: skip
    cells = []
    for name, rate, chips, chip, flops, memory in rows:
        achieved = rate * flops / chips / 1e12
        cells.append([
            name,
            _short(rate),
            _short(rate / chips),
            f"{flops / 1e9:,.0f}",
            f"{achieved:.1f}",
            f"{achieved / get(f'{chip}.peak_tflops'):.0%}",
            f"{memory:.2f}" if memory else "–",
        ])  # fmt: skip
    head = ["system", "images/s", "per chip", "GFLOP/image", "TFLOP/s per chip", "of peak"]
    return _table([*head, "GB/image"], cells)


def _inputs(estimates: Estimates) -> str:
    rows = [
        [f"`{name}`", _short(each.value), each.source] for name, each in estimates.inputs.items()
    ]
    return "\n".join([
        "| input | value | source |",
        "| --- | ---: | --- |",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ])  # fmt: skip
