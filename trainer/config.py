"""Settings of the training run, and `Params`, which holds the settings of all packages."""

from __future__ import annotations

import dataclasses

from data.config import CANVAS, DataConfig
from data.settings import (
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    SHARE_BELOW_ONE,
    Check,
    Relation,
    check_settings,
    each,
    one_of,
    path_setting,
    require,
    setting,
)
from model.config import ModelConfig

MODES = ("train", "eval", "train_and_eval", "predict", "export")
EXPORT_FORMATS = ("saved_model", "openvino")
OPTIMIZERS = ("sgd", "adamw")
DISTRIBUTIONS = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
SCHEDULES = ("step", "cosine", "constant")

ASCENDING = Check(
    "steps of 0 or more in ascending order",
    lambda steps: steps == tuple(sorted(steps)) and min(steps, default=0) >= 0,
)

NEEDS_ANNOTATIONS = Relation(
    lambda value, config: (
        f"false for --mode={config.mode} without --eval_annotation_file, because records lack "
        "LVIS's lists of categories"
    ),
    lambda value, config: (
        not value
        or bool(config.eval_annotation_file)
        or config.mode not in ("eval", "train_and_eval")
    ),
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of optimisation, checkpoints and evaluation (`trainer/`)."""

    mode: str = setting("train", "One of " + ", ".join(MODES) + ".", one_of(*MODES))
    model_dir: str = path_setting("Folder for checkpoints, logs and results.")
    output_dir: str = path_setting(
        "Folder for the results of evaluation and prediction; the default is --model_dir."
    )
    eval_annotation_file: str = path_setting(
        "COCO JSON to evaluate against; if empty, it is rebuilt from the evaluation records."
    )
    init_checkpoint: str = path_setting(
        "Checkpoint with the initial weights of a fresh run; evaluation and prediction use it "
        "instead of the latest one in --model_dir."
    )
    canvas: str = setting(
        "",
        "HEIGHTxWIDTH that --mode=export exports the network for; empty: the first of --canvases.",
        Check(f"empty or {CANVAS.expected}", lambda canvas: not canvas or CANVAS.holds(canvas)),
    )
    export_formats: tuple[str, ...] = setting(
        ("saved_model",),
        "Formats that --mode=export writes: saved_model, openvino.",
        each(one_of(*EXPORT_FORMATS)),
    )
    calibration_file_pattern: str = path_setting(
        "Records whose images give the ranges of int8 exports; the default is the training records."
    )
    distribution: str = setting(
        "auto",
        "Use of devices: one_device, mirrored (all of this machine), multi_worker (of all machines "
        "in TF_CONFIG), tpu, or auto, which chooses by TF_CONFIG and the number of devices.",
        one_of(*DISTRIBUTIONS),
    )
    tpu: str = setting(
        "local",
        "Name or address of the TPU of --distribution=tpu; local is the one of this TPU VM.",
    )
    num_logical_cpus: int = setting(
        0,
        "Split the CPU into this many devices, to try replication without GPUs; 0 does not "
        "split it.",
        NOT_NEGATIVE,
    )

    train_steps: int = setting(
        90000, "Total number of training steps; a rerun with a larger number continues.", POSITIVE
    )
    optimizer: str = setting("sgd", "Optimizer: sgd or adamw.", one_of(*OPTIMIZERS))
    learning_rate: float = setting(0.02, "Peak learning rate.", POSITIVE)
    learning_rate_batch_size: int = setting(
        0,
        "Batch size that the schedule was written for: for a larger batch, the learning rate is "
        "raised and the numbers of steps in flagfiles are reduced in proportion (those on the "
        "command line are not changed); 0 turns scaling off.",
        NOT_NEGATIVE,
    )
    learning_rate_schedule: str = setting(
        "step",
        "Schedule of the learning rate after the warm-up: step, cosine or constant.",
        one_of(*SCHEDULES),
    )
    learning_rate_steps: tuple[int, ...] = setting(
        (60000, 80000),
        "Steps at which the step schedule multiplies the learning rate by --learning_rate_decay.",
        ASCENDING,
    )
    learning_rate_decay: float = setting(
        0.1, "Factor by which the step schedule multiplies the learning rate.", POSITIVE_SHARE
    )
    warmup_steps: int = setting(1000, "Number of steps of linear warm-up.", NOT_NEGATIVE)
    warmup_factor: float = setting(
        0.001, "Fraction of the peak learning rate at which the warm-up starts.", SHARE
    )
    momentum: float = setting(0.9, "Momentum of SGD; beta 1 of AdamW is 0.9.", SHARE_BELOW_ONE)
    weight_decay: float = setting(
        1e-4,
        "Weight decay of kernels; it does not apply to norm parameters and biases.",
        NOT_NEGATIVE,
    )
    ema_decay: float = setting(
        0.0,
        "Evaluate and export an exponential moving average of the weights that keeps this share of "
        "itself at each step, such as 0.9998; 0 turns averaging off.",
        SHARE_BELOW_ONE,
    )
    accumulate_steps: int = setting(
        1,
        "Compute each batch in this many parts, one after another, and update with the sum of "
        "their gradients, which needs the memory of one part.",
        POSITIVE,
    )
    gradient_clip_norm: float = setting(
        0.0, "Global norm that gradients are clipped to; 0 turns clipping off.", NOT_NEGATIVE
    )
    nonfinite_retries: int = setting(
        0,
        "If a loss or gradient is not finite, go back to the latest checkpoint (next time, to the "
        "one before) and go on with half the learning rate, at most this many times; 0 ends the "
        "training at once.",
        NOT_NEGATIVE,
    )

    log_every_steps: int = setting(
        20, "Steps between lines in train.jsonl and in the progress output.", POSITIVE
    )
    save_every_steps: int = setting(1000, "Steps between checkpoints.", POSITIVE)
    save_every_minutes: float = setting(
        15.0,
        "Also save a checkpoint after this many minutes; 0 saves by steps only.",
        NOT_NEGATIVE,
    )
    keep_checkpoints: int = setting(
        3, "Number of recent checkpoints to keep, in addition to the best one.", POSITIVE
    )
    eval_every_steps: int = setting(
        5000, "Steps between evaluations in mode train_and_eval.", POSITIVE
    )
    patience: int = setting(
        0,
        "Stop training after this many evaluations in a row without a better AP; 0 never stops.",
        NOT_NEGATIVE,
    )
    eval_boundary: bool = setting(
        False, "Evaluate masks also by Boundary IoU, which sees errors of contours; takes longer."
    )
    eval_lvis_style: bool = setting(
        False,
        "Evaluate also as LVIS does; needs --eval_annotation_file in LVIS's format, which says "
        "which categories were annotated in which image.",
        relation=NEEDS_ANNOTATIONS,
    )
    num_eval_images_shown: int = setting(
        4, "Number of predictions per evaluation drawn for TensorBoard.", NOT_NEGATIVE
    )

    def __post_init__(self):
        check_settings(self)

    @property
    def trains(self) -> bool:
        """Whether the mode trains."""
        return self.mode in ("train", "train_and_eval")


@dataclasses.dataclass(frozen=True)
class Params:
    """All settings of a run; each package reads its own part."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        require(
            not self.data.pairs_images
            or (self.model.include_mask and not self.model.include_polygons),
            "augmentations",
            self.data.augmentations,
            "no copy_paste if the system has no masks or with --mask_target=polygon, because "
            "polygons cannot describe partly covered objects",
        )
        require(
            self.train.train_steps % self.data.steps_per_call == 0,
            "train_steps",
            self.train.train_steps,
            f"a multiple of --steps_per_call={self.data.steps_per_call}",
        )
        require(
            self.data.train_batch_size % self.train.accumulate_steps == 0,
            "accumulate_steps",
            self.train.accumulate_steps,
            f"a divisor of --train_batch_size={self.data.train_batch_size}",
        )
        require(
            self.train.accumulate_steps == 1 or self.data.steps_per_call == 1,
            "accumulate_steps",
            self.train.accumulate_steps,
            "1 with --steps_per_call above 1",
        )
        on_tpu = self.train.distribution == "tpu"
        require(
            not on_tpu or self.model.roi_sampling_ratio > 0,
            "roi_sampling_ratio",
            self.model.roi_sampling_ratio,
            "at least 1 with --distribution=tpu, which needs static shapes",
        )
        require(
            not on_tpu or not self.model.jit_compile,
            "jit_compile",
            self.model.jit_compile,
            "false with --distribution=tpu, which compiles everything by itself",
        )
        self._check_system()

    def _check_system(self) -> None:
        data, model = self.data, self.model
        levels = (2, 3, 4, 5, 6) if model.has_pyramid else (4,)
        require(
            not self.train.eval_boundary or model.include_mask,
            "eval_boundary",
            self.train.eval_boundary,
            f"false for --system={model.system}, which has no masks",
        )
        require(
            not model.has_rpn or data.anchor_levels == levels,
            "anchor_levels",
            data.anchor_levels,
            f"{','.join(map(str, levels))} for --system={model.system}",
        )
        require(
            not model.has_rpn or not data.proposals_file,
            "proposals_file",
            data.proposals_file,
            f"none for --system={model.system}, which makes its proposals",
        )
        require(
            model.has_rpn or (len(data.test_scales) == 1 and not data.test_flip),
            "test_scales",
            data.test_scales,
            f"one, and --notest_flip, for --system={model.system}, whose proposals are given for "
            "one view of an image",
        )

    @property
    def static_shapes(self) -> bool:
        """Whether the network needs static shapes, as XLA and TPUs do."""
        return self.model.jit_compile or self.train.distribution == "tpu"

    @property
    def patterns(self) -> list[str]:
        """The patterns of all records that the run reads, those of its main records first."""
        training = [self.data.train_file_pattern] if self.train.trains else []
        evaluates = self.train.mode not in ("train", "export")
        evaluation = [self.data.eval_file_pattern] if evaluates else []
        return list(dict.fromkeys(training + evaluation))
