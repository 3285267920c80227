"""TPU types, and the software that belongs to each.

Runtime versions are named tpu-vm-tf-x.y.z[-pod]-pjrt
(https://cloud.google.com/tpu/docs/runtimes). A slice with more than one host needs `-pod`: its
hosts run a TensorFlow server, and the program runs on the first host and uses the others through
the network.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data.settings import SettingError

TENSORFLOW = "2.20.0"
FAMILIES = ("v2", "v3", "v4", "v5litepod", "v5p")
# A host has 8 TensorCores, or 8 chips of v5e; the number in a type's name counts the same.
_SIZE_OF_A_HOST = 8
_OTHER_NAMES = {"v5e": "v5litepod", "v5lite": "v5litepod"}
_WITHOUT_TENSORFLOW = re.compile(r"(?:v|tpu)(?:[6-9]|\d\d+)[a-z]*", re.IGNORECASE)


class Accelerator(NamedTuple):
    """A TPU type, such as v5litepod-8.

    Attributes:
        family: generation, such as "v5litepod".
        size: number of TensorCores, or for v5litepod of chips.
    """

    family: str
    size: int

    @property
    def name(self) -> str:
        """Its name in gcloud."""
        return f"{self.family}-{self.size}"

    @property
    def has_several_hosts(self) -> bool:
        """Whether it is a pod slice."""
        return self.size > _SIZE_OF_A_HOST

    @property
    def runtime_version(self) -> str:
        """Software of the TPU VM that has this project's TensorFlow."""
        return f"tpu-vm-tf-{TENSORFLOW}{'-pod' if self.has_several_hosts else ''}-pjrt"


def parse_accelerator(name: str) -> Accelerator:
    """Reads a TPU type.

    Raises:
        SettingError: there is no such type, or TensorFlow does not support it.
    """
    family, _, size = name.partition("-")
    if family in _OTHER_NAMES:
        raise SettingError(
            f"--accelerator_type={name}: gcloud calls this type {_OTHER_NAMES[family]}-{size}."
        )
    if family not in FAMILIES and _WITHOUT_TENSORFLOW.fullmatch(family):
        raise SettingError(
            f"--accelerator_type={name}: TensorFlow supports TPU v2 to v5 only; v6e and later "
            "types run JAX and PyTorch. Use a type such as v5litepod-8 or v5p-8."
        )
    if family not in FAMILIES or not re.fullmatch("[1-9][0-9]*", size):
        raise SettingError(
            f"--accelerator_type={name}: expected one of {', '.join(FAMILIES)}, a hyphen and the "
            "size, such as v5litepod-8."
        )
    return Accelerator(family, int(size))
