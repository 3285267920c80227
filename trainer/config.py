"""Settings of the training run, and `Params`, which holds the settings of all rooms."""

from __future__ import annotations

import dataclasses

from data.config import DataConfig
from data.settings import (
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    SHARE_BELOW_ONE,
    Check,
    check_settings,
    one_of,
    path_setting,
    require,
    setting,
)
from model.config import ModelConfig

MODES = ("train", "eval", "train_and_eval", "predict")
OPTIMIZERS = ("sgd", "adamw")
DISTRIBUTIONS = ("auto", "one_device", "mirrored")
SCHEDULES = ("step", "cosine", "constant")

ASCENDING = Check(
    "steps of 0 or more in ascending order",
    lambda steps: steps == tuple(sorted(steps)) and min(steps, default=0) >= 0,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, checkpoints and evaluation (`trainer/`)."""

    mode: str = setting("train", "One of " + ", ".join(MODES) + ".", one_of(*MODES))
    model_dir: str = path_setting("Folder for checkpoints, logs and results.")
    output_dir: str = path_setting(
        "Folder for what evaluation and prediction write, in place of --model_dir."
    )
    eval_annotation_file: str = path_setting(
        "COCO JSON to evaluate against; when empty it is rebuilt from the evaluation records."
    )
    init_checkpoint: str = path_setting(
        "Checkpoint whose network weights a fresh run starts from, and which evaluation and "
        "prediction use in place of the model_dir's latest."
    )
    distribution: str = setting(
        "auto",
        "auto, one_device or mirrored; auto mirrors when there are several devices.",
        one_of(*DISTRIBUTIONS),
    )
    num_logical_cpus: int = setting(
        0, "Split the CPU into this many devices (to try replication without GPUs).", NOT_NEGATIVE
    )

    train_steps: int = setting(90000, "Steps in all; a rerun with more continues.", POSITIVE)
    optimizer: str = setting("sgd", "sgd or adamw.", one_of(*OPTIMIZERS))
    learning_rate: float = setting(0.02, "Peak learning rate.", POSITIVE)
    learning_rate_batch_size: int = setting(
        0,
        "Batch size that the schedule is for: the rate grows with the actual one, and the steps of "
        "a flagfile shrink (those on the command line are taken as they are); 0: all as is.",
        NOT_NEGATIVE,
    )
    learning_rate_schedule: str = setting(
        "step", "step, cosine or constant, after the warm-up.", one_of(*SCHEDULES)
    )
    learning_rate_steps: tuple[int, ...] = setting(
        (60000, 80000),
        "Steps at which the step schedule multiplies the rate by the next setting.",
        ASCENDING,
    )
    learning_rate_decay: float = setting(0.1, "Factor of the step schedule.", POSITIVE_SHARE)
    warmup_steps: int = setting(1000, "Steps of linear warm-up.", NOT_NEGATIVE)
    warmup_factor: float = setting(
        0.001, "Share of the peak rate that the warm-up starts from.", SHARE
    )
    momentum: float = setting(0.9, "Momentum of SGD; beta 1 of AdamW is 0.9.", SHARE_BELOW_ONE)
    weight_decay: float = setting(
        1e-4, "Decay of kernels; norm parameters and biases have none.", NOT_NEGATIVE
    )
    gradient_clip_norm: float = setting(
        0.0, "Global norm that gradients are clipped to; 0: never.", NOT_NEGATIVE
    )

    log_every_steps: int = setting(
        20, "Steps between lines of train.jsonl and of the progress.", POSITIVE
    )
    save_every_steps: int = setting(1000, "Steps between checkpoints.", POSITIVE)
    save_every_minutes: float = setting(
        15.0,
        "Minutes after which a checkpoint is due, whatever the step; 0: by steps only.",
        NOT_NEGATIVE,
    )
    keep_checkpoints: int = setting(
        3, "Recent checkpoints kept; the best one is kept as well.", POSITIVE
    )
    eval_every_steps: int = setting(5000, "Steps between evaluations in train_and_eval.", POSITIVE)
    num_eval_images_shown: int = setting(
        4, "Predictions drawn into TensorBoard an evaluation.", NOT_NEGATIVE
    )

    def __post_init__(self):
        check_settings(self)

    @property
    def trains(self) -> bool:
        """Whether the mode trains."""
        return self.mode in ("train", "train_and_eval")


@dataclasses.dataclass(frozen=True)
class Params:
    """Everything one run was asked to do; each room reads its own part."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        require(
            not self.data.pairs_images
            or (self.model.include_mask and not self.model.include_polygons),
            "augmentations",
            self.data.augmentations,
            "no copy_paste without masks or with --mask_target=polygon, since polygons cannot tell "
            "what of an object is covered",
        )

    @property
    def patterns(self) -> list[str]:
        """Of all records that the run reads; the first is of those that it is about."""
        training = [self.data.train_file_pattern] if self.train.trains else []
        evaluation = [self.data.eval_file_pattern] if self.train.mode != "train" else []
        return list(dict.fromkeys(training + evaluation))
