"""Settings of the training run, and `Params`, which holds the settings of all rooms."""

from __future__ import annotations

import dataclasses

from data.config import DataConfig, require, setting
from model.config import ModelConfig

MODES = ("train", "eval", "train_and_eval", "predict")
OPTIMIZERS = ("sgd", "adamw")
DISTRIBUTIONS = ("auto", "one_device", "mirrored")
SCHEDULES = ("step", "cosine", "constant")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, checkpoints and evaluation (`trainer/`)."""

    mode: str = setting("train", "One of " + ", ".join(MODES) + ".")
    model_dir: str = setting("", "Folder for checkpoints, logs and results.")
    eval_annotation_file: str = setting(
        "", "COCO JSON to evaluate against; when empty it is rebuilt from the evaluation records."
    )
    init_checkpoint: str = setting("", "Checkpoint whose network weights a fresh run starts from.")
    distribution: str = setting(
        "auto", "auto, one_device or mirrored; auto mirrors when there are several devices."
    )
    num_logical_cpus: int = setting(
        0, "Split the CPU into this many devices (to try replication without GPUs)."
    )

    train_steps: int = setting(90000, "Steps in all; a rerun with more continues.")
    optimizer: str = setting("sgd", "sgd or adamw.")
    learning_rate: float = setting(0.02, "Peak learning rate.")
    learning_rate_batch_size: int = setting(
        0,
        "Batch size that --learning_rate is for: scaled linearly to the actual one; 0: as is.",
    )
    learning_rate_schedule: str = setting("step", "step, cosine or constant, after the warm-up.")
    learning_rate_steps: tuple[int, ...] = setting(
        (60000, 80000), "Steps at which the step schedule multiplies the rate by the next setting."
    )
    learning_rate_decay: float = setting(0.1, "Factor of the step schedule.")
    warmup_steps: int = setting(1000, "Steps of linear warm-up.")
    warmup_factor: float = setting(0.001, "Share of the peak rate that the warm-up starts from.")
    momentum: float = setting(0.9, "Momentum of SGD; beta 1 of AdamW is 0.9.")
    weight_decay: float = setting(1e-4, "Decay of kernels; norm parameters and biases have none.")
    gradient_clip_norm: float = setting(0.0, "Global norm that gradients are clipped to; 0: never.")

    log_every_steps: int = setting(20, "Steps between lines of train.jsonl and of the progress.")
    save_every_steps: int = setting(1000, "Steps between checkpoints.")
    keep_checkpoints: int = setting(3, "Recent checkpoints kept; the best one is kept as well.")
    eval_every_steps: int = setting(5000, "Steps between evaluations in train_and_eval.")
    num_eval_images_shown: int = setting(4, "Predictions drawn into TensorBoard an evaluation.")

    def __post_init__(self):
        for name, choices in (
            ("mode", MODES),
            ("optimizer", OPTIMIZERS),
            ("distribution", DISTRIBUTIONS),
            ("learning_rate_schedule", SCHEDULES),
        ):
            value = getattr(self, name)
            require(value in choices, name, value, "one of " + ", ".join(choices))
        for name in (
            "train_steps",
            "learning_rate",
            "log_every_steps",
            "save_every_steps",
            "keep_checkpoints",
            "eval_every_steps",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in (
            "warmup_steps",
            "weight_decay",
            "gradient_clip_norm",
            "num_logical_cpus",
            "learning_rate_batch_size",
            "num_eval_images_shown",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("momentum", "warmup_factor", "learning_rate_decay"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        steps = self.learning_rate_steps
        require(
            steps == tuple(sorted(steps)), "learning_rate_steps", steps, "steps in ascending order"
        )


@dataclasses.dataclass(frozen=True)
class Params:
    """Everything one run was asked to do; each room reads its own part."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
