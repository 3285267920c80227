"""Throughput, host CPUs, time and money on machines, from counted work and other numbers.

A rate on another chip than the measured one is a range. One end assumes the measured share of the
peak arithmetic, the other the measured share of the memory bandwidth.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data import files
from data.errors import UserError

MEASURED_CHIP = "h200"
_CPUS = ("fast_cpu", "slow_cpu")


class Machine(NamedTuple):
    """Chips of one type, the hosts that they are divided among, and the images of a step."""

    name: str
    chip: str
    chips: int
    hosts: int
    batch: int


MACHINES = (
    Machine("1 × H200", "h200", 1, 1, 16),
    Machine("8 × H100", "h100", 8, 1, 16),
    Machine("v5litepod-8", "v5e", 8, 1, 16),
    Machine("v5litepod-32", "v5e", 32, 4, 64),
)


class Range(NamedTuple):
    """The lowest and the highest estimate."""

    low: float
    high: float

    @classmethod
    def of(cls, *values: float) -> Range:
        """Makes the range of these values."""
        return cls(min(values), max(values))


class Input(NamedTuple):
    """A number and where it is from."""

    value: float
    source: str


def read_inputs(
    work_path: str, inputs_path: str, changes: Sequence[str] = ()
) -> tuple[dict, dict[str, Input]]:
    """Reads the work of a step, and all other numbers by name.

    Args:
        work_path: JSON file of `tools.scaling.work.count`.
        inputs_path: JSON file, {name: [number, source]}.
        changes: "NAME=NUMBER" each, replacements.

    Raises:
        UserError: a file is unusable, or a change has no number or an unknown name.
    """
    work, inputs = map(_read_json, (work_path, inputs_path))
    try:
        inputs = {name: _parse_input(*entry) for name, entry in inputs.items()}
    except (TypeError, ValueError):
        raise UserError(f"{inputs_path}: expected {{name: [number above 0, source]}}.") from None
    for change in changes:
        name, _, text = change.partition("=")
        if name not in inputs:
            raise UserError(f"--set={change}: {inputs_path} has no {name!r}.")
        try:
            inputs[name] = _parse_input(text, "--set")
        except ValueError:
            raise UserError(f"--set={change}: expected NAME=NUMBER, above 0.") from None
    return work, inputs


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Estimates from `work` and `inputs`, see `read_inputs`."""

    work: Mapping
    inputs: Mapping[str, Input]

    def get(self, name: str) -> float:
        """Returns the input `name`."""
        return self.inputs[name].value

    def flops(self, kind: str, without: Sequence[str] = ()) -> float:
        """Sums the operations of "train" or "predict" per image, except some parts'."""
        return sum(
            flops
            for parts in self.work[kind].values()
            for part, (flops, _) in parts.items()
            if part not in without
        )

    def rate_per_chip(self, kind: str, chip: str) -> Range:
        """Estimates the images/s of one chip alone, in "train" or "predict"."""
        measured = self.get(f"{MEASURED_CHIP}.{kind}_images_per_second")
        limits = ("peak_tflops", "memory_gb_per_s")
        return Range.of(
            *(measured * self.get(f"{chip}.{x}") / self.get(f"{MEASURED_CHIP}.{x}") for x in limits)
        )

    def reduction_seconds(self, machine: Machine) -> float:
        """Estimates the time in which a ring sums the float32 gradients of all chips."""
        moved = 2 * (machine.chips - 1) / machine.chips * 4 * self.work["trained_weights"]
        return moved / (self.get(f"{machine.chip}.link_gb_per_s") * 1e9)

    def training_rate(self, machine: Machine) -> Range:
        """Estimates the images/s of a training, whose reductions wait for the gradients."""
        rates, images = self.rate_per_chip("train", machine.chip), machine.batch / machine.chips
        reduction = self.reduction_seconds(machine)
        return Range(*(machine.batch / (images / rate + reduction) for rate in rates))

    def vcpus_needed(self, rate: float) -> Range:
        """Estimates how many vCPUs prepare this many images/s, on the fast and the slow CPU."""
        return Range.of(*(rate * self.get(f"{cpu}.input_ms") / 1e3 for cpu in _CPUS))

    def usable_vcpus(self, machine: Machine) -> float:
        """Counts the vCPUs of one host that the input may use."""
        there = self.get(f"{machine.chip}.vcpus_per_chip") * machine.chips / machine.hosts
        return there * self.get("usable_vcpus")

    def service_hosts(self, rate: float) -> int:
        """Estimates how many hosts of tf.data service prepare all images, by CPU and by network."""
        by_cpu = self.vcpus_needed(rate).high / self.get("service_vcpus")
        sent = self.work["bytes"]["image"] + self.work["bytes"]["labels"]
        by_network = rate * sent * 8 / (self.get("service_gbit_per_s") * 1e9)
        return math.ceil(max(by_cpu, by_network))

    def training_hours(self, machine: Machine) -> Range:
        """Estimates the hours of the training steps."""
        rates = self.training_rate(machine)
        return Range.of(*(self.get("images") / rate / 3600 for rate in rates))

    def evaluated_images(self, machine: Machine) -> float:
        """Counts the images of all evaluations, the last of which is at the end."""
        steps = self.get("images") / machine.batch
        return math.ceil(steps / self.get("eval_every_steps")) * self.get("eval_images")

    def pasting_hours(self, machine: Machine) -> Range:
        """Estimates the hours in which one thread pastes and encodes the masks of evaluations."""
        masks = self.evaluated_images(machine) * self.get("detections_per_image")
        return Range.of(*(masks * self.get(f"{cpu}.paste_ms") / 3.6e6 for cpu in _CPUS))

    def evaluation_hours(self, machine: Machine) -> Range:
        """Estimates the hours of all evaluations: the slower of chips and pasting, then metrics."""
        images = self.evaluated_images(machine)
        metrics = images * self.get("fast_cpu.metrics_ms") / 3.6e6
        rates = self.rate_per_chip("predict", machine.chip)
        chips = Range.of(*(images / rate / machine.chips / 3600 for rate in rates))
        pasting = self.pasting_hours(machine)
        return Range(*(max(pair) + metrics for pair in zip(chips, pasting, strict=True)))

    def saving_hours(self, machine: Machine) -> Range:
        """Estimates the hours in which the training waits for checkpoints to be written."""
        by_steps = self.get("images") / machine.batch / self.get("save_every_steps")
        each = self.work["checkpoint_bytes"] / (self.get("storage_gb_per_s") * 1e9) / 3600
        by_time = [h * 60 / self.get("save_every_minutes") for h in self.training_hours(machine)]
        return Range.of(*(math.ceil(max(by_steps, saves)) * each for saves in by_time))

    def total_hours(self, machine: Machine) -> Range:
        """Adds the hours of training, evaluations and checkpoints."""
        parts = (self.training_hours, self.evaluation_hours, self.saving_hours)
        return Range(*map(sum, zip(*(part(machine) for part in parts), strict=True)))

    def usd(self, machine: Machine, hours: float) -> float:
        """Returns the price of these hours."""
        return hours * machine.chips * self.get(f"{machine.chip}.usd_per_hour")


def _read_json(path: str) -> dict:
    try:
        with files.open_file(path) as file:
            return dict(json.load(file))
    except (TypeError, ValueError):
        raise UserError(f"{path} is not a JSON object.") from None


def _parse_input(number: float | str, source: str) -> Input:
    value = float(number)
    if not 0 < value < math.inf:
        raise ValueError(number)
    return Input(value, source)
