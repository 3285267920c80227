"""Learning-rate schedule, optimizers, clipping and loss scaling.

Keras optimizers sum the replicas' gradients themselves, but only after clipping each replica's own
and after applying weight decay. Here `sum_over_replicas` sums the gradients first; clipping, the
test for overflow and the update use the gradient of the global batch, so that the number of
replicas does not change the result.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from model.variables import native
from trainer.averaging import WeightAverage
from trainer.config import Params, TrainConfig

_INITIAL_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000

Schedule = keras.optimizers.schedules.LearningRateSchedule


class WarmupSchedule(Schedule):
    """Linear warm-up to the peak rate, then steps, a cosine or a constant.

    At step s < warmup_steps the rate is `peak * (f + (1 - f) * s / warmup_steps)` with f the
    warm-up factor (Goyal et al. 2017, section 2.2). The cosine falls from the peak at the end of
    the warm-up to 0 at `train_steps` (Loshchilov & Hutter 2017).
    """

    def __init__(self, peak: float, config: TrainConfig):
        self.peak = peak
        self._config = config

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate of update number `step` (integer scalar, from 0): float32 scalar."""
        step = tf.cast(step, tf.float32)
        return self.peak * self._warmup(step) * self._decay(step)

    def _warmup(self, step: tf.Tensor) -> tf.Tensor:
        config = self._config
        progress = tf.minimum(step / max(config.warmup_steps, 1), 1.0)
        if config.warmup_steps == 0:
            progress = tf.ones_like(step)
        return config.warmup_factor + (1.0 - config.warmup_factor) * progress

    def _decay(self, step: tf.Tensor) -> tf.Tensor:
        config = self._config
        if config.learning_rate_schedule == "constant":
            return tf.ones_like(step)
        if config.learning_rate_schedule == "step":
            milestones = tf.constant(config.learning_rate_steps, tf.float32)
            passed = tf.reduce_sum(tf.cast(step >= milestones, tf.float32))
            return tf.pow(tf.constant(config.learning_rate_decay, tf.float32), passed)
        length = max(config.train_steps - config.warmup_steps, 1)
        progress = tf.clip_by_value((step - config.warmup_steps) / length, 0.0, 1.0)
        return 0.5 * (1.0 + tf.cos(math.pi * progress))


class HalvedSchedule(Schedule):
    """A schedule whose rates are halved a number of times that a variable holds.

    Args:
        schedule: of integer steps.
        halvings: int32 scalar.
    """

    def __init__(self, schedule: Schedule, halvings: tf.Variable):
        self._schedule = schedule
        self._halvings = halvings

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate of update number `step`: float32 scalar."""
        return self._schedule(step) * tf.pow(0.5, tf.cast(self._halvings, tf.float32))


def peak_learning_rate(params: Params) -> float:
    """Returns the peak rate, scaled to the batch size if `--learning_rate_batch_size` is set."""
    return params.train.learning_rate * learning_rate_scale(params)


def learning_rate_scale(params: Params) -> float:
    """Returns the peak rate divided by `--learning_rate`."""
    reference = params.train.learning_rate_batch_size
    return params.data.train_batch_size / reference if reference else 1.0


class _SummedGradients:
    """Mixin for optimizers whose `apply` receives gradients already summed over the replicas."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class CoupledSGD(_SummedGradients, keras.optimizers.SGD):
    """SGD that adds decay to the gradient: `b = momentum * b + g + decay * w ; w = w - rate * b`.

    This is PyTorch's and Detectron2's rule. Keras' own decay is decoupled (it does not affect the
    momentum), and its momentum buffer includes the rate, so that it lags behind rate changes.
    """

    def __init__(
        self, learning_rate, momentum: float, weight_decay: float, decayed: frozenset[int]
    ):
        super().__init__(learning_rate=learning_rate, momentum=momentum)
        self._coupled_decay = weight_decay
        self._decayed_keys = decayed
        self._decay_of = ()

    def build(self, variables: Sequence) -> None:
        """Makes the momentum buffers and determines which of the variables decay."""
        super().build(variables)
        self._decay_of = tuple(
            self._coupled_decay if variable_key(variable) in self._decayed_keys else 0.0
            for variable in variables
        )

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate) -> None:
        """Updates one variable by its gradient, both float32 of one shape, in one fused op."""
        index = self._get_variable_index(variable)
        if self._decay_of[index]:
            # Otherwise all decays, as large as the network, are computed at the start of the step.
            with tf.control_dependencies([gradient]):
                gradient += self._decay_of[index] * variable
        if not self.momentum:
            self.assign_sub(variable, learning_rate * gradient)
            return
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=native(self.momentums[index]).handle,
            lr=learning_rate,
            grad=gradient,
            momentum=self.momentum,
        )


class DecoupledAdamW(_SummedGradients, keras.optimizers.AdamW):
    """AdamW (Loshchilov & Hutter 2019), with the decay separate from the gradient."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate) -> None:
        """Applies Keras' rule in fused ops; Keras itself reads the variable a dozen times."""
        index = self._get_variable_index(variable)
        if self.weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, learning_rate * self.weight_decay * variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=native(self._momentums[index]).handle,
            v=native(self._velocities[index]).handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )

    def _apply_weight_decay(self, variables) -> None:
        """Does nothing, because `update_step` applies the decay."""


class LossScale(tf.Module):
    """Dynamic loss scale for float16: halved at each overflow, doubled after a period without.

    Micikevicius et al. 2018, section 3.2. Keras' LossScaleOptimizer checks only the first replica's
    gradients, and before they are summed.
    """

    def __init__(self, growth_steps: int = _LOSS_SCALE_GROWTH_STEPS):
        super().__init__()
        self.scale = tf.Variable(_INITIAL_LOSS_SCALE, trainable=False, name="loss_scale")
        self.quiet_steps = tf.Variable(0, trainable=False, name="quiet_steps")
        self._growth_steps = growth_steps

    def update(self, finite: tf.Tensor) -> None:
        """Adapts the scale to whether the step's gradients were finite (bool scalar)."""
        quiet = tf.where(finite, self.quiet_steps + 1, 0)
        grown = quiet >= self._growth_steps
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        # A scale below 1 would have the opposite effect.
        self.scale.assign(tf.maximum(self.scale * factor, 1.0))
        self.quiet_steps.assign(tf.where(grown, 0, quiet))


class Updater:
    """Updates the variables from the replicas' losses; must be made under the strategy's scope.

    Args:
        network: has `variables`, `trainable_variables` and `decayed_variables`.
        params: settings.
        schedule: of the learning rate; the default is the one in the settings.

    Attributes:
        variables: the network's trainable variables, in the order of their gradients.
        optimizer: the Keras optimizer, built for `variables`.
        loss_scale: `LossScale` under mixed_float16, else None.
        average: `WeightAverage` in a training with `--ema_decay`, else None.
        halvings: with `--nonfinite_retries` the number of times that the learning rate was halved,
            an int32 variable; else None.
    """

    def __init__(self, network, params: Params, schedule: Schedule | None = None):
        self.variables = list(network.trainable_variables)
        self._clip_norm = params.train.gradient_clip_norm
        self._schedule = schedule or WarmupSchedule(peak_learning_rate(params), params.train)
        self.halvings = None
        if params.train.nonfinite_retries:
            self.halvings = tf.Variable(0, trainable=False, name="halvings")
            self._schedule = HalvedSchedule(self._schedule, self.halvings)
        self.optimizer = make_optimizer(network, params.train, self._schedule)
        self.optimizer.build(self.variables)
        self.loss_scale = LossScale() if params.model.precision == "mixed_float16" else None
        decay = params.train.ema_decay
        self.average = WeightAverage(network, decay) if params.train.trains and decay else None

    def latest_learning_rate(self) -> float:
        """The learning rate of the latest update, which `iterations` already includes."""
        return float(self._schedule(max(int(self.optimizer.iterations.numpy()) - 1, 0)))

    def state(self) -> tf.train.Checkpoint:
        """The part of the optimizer that a checkpoint has to contain.

        The optimizer itself is not tracked, because the checkpoint would then store the network's
        variables under the optimizer's references to them.
        """
        loss_scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale}
        return tf.train.Checkpoint(variables=list(self.optimizer.variables), **loss_scale)

    def averaged_weights(self) -> contextlib.AbstractContextManager:
        """The network has its averaged weights within it, if they are averaged."""
        return contextlib.nullcontext() if self.average is None else self.average.in_use()

    def differentiate(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor | None]:
        """Computes the gradients of a replica's loss; call it in a replica, outside the tape.

        `loss` is the replica's share as returned by `scaled`.
        """
        gradients = tape.gradient(loss, [native(variable) for variable in self.variables])
        return [_map(tf.convert_to_tensor, gradient) for gradient in gradients]

    def combine(
        self, gradients: Sequence[tf.Tensor | None]
    ) -> tuple[list[tf.Tensor | None], tf.Tensor]:
        """Sums the replicas' gradients and clips them; call it in a replica.

        Args:
            gradients: what `differentiate` returned, or sums of it.

        Returns:
            The gradients of the global loss, clipped, and their global norm before clipping.
        """
        gradients = sum_over_replicas(gradients)
        if self.loss_scale is not None:
            gradients = [_map(lambda g: g / self.loss_scale.scale, g) for g in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm:
            factor = tf.minimum(1.0, self._clip_norm / tf.maximum(norm, 1e-12))
            gradients = [_map(lambda g: g * factor, g) for g in gradients]
        return gradients, norm

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """Scales the loss to differentiate; call it inside the tape."""
        return loss if self.loss_scale is None else loss * self.loss_scale.scale

    def apply(self, strategy: tf.distribute.Strategy, gradients, norm: tf.Tensor) -> None:
        """Updates the variables; call it outside the replicas.

        Args:
            gradients: what `combine` returned in each replica.
            norm: float32 scalar, the global norm; with float16, steps in which it is not finite are
                skipped.
        """

        def update():
            strategy.run(self._apply_in_replica, args=(gradients,))

        if self.loss_scale is None:
            update()
        else:
            finite = tf.math.is_finite(norm)
            # The condition is outside the replicas, which may not synchronise within a branch.
            _run_if(finite, update)
            self.loss_scale.update(finite)
        if self.average is not None:
            self.average.update(strategy, self.optimizer.iterations)

    def _apply_in_replica(self, gradients) -> None:
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(gradients, self.variables, strict=True)
            if gradient is not None
        ]
        self.optimizer.apply([g for g, _ in pairs], [v for _, v in pairs])


def make_optimizer(network, config: TrainConfig, schedule: Schedule) -> keras.optimizers.Optimizer:
    """Makes the optimizer that `--optimizer` names, which decays `network.decayed_variables`."""
    decayed = frozenset(variable_key(variable) for variable in network.decayed_variables)
    if config.optimizer == "sgd":
        return CoupledSGD(schedule, config.momentum, config.weight_decay, decayed)
    optimizer = DecoupledAdamW(schedule, weight_decay=config.weight_decay, epsilon=1e-8)
    optimizer.exclude_from_weight_decay(
        [v for v in network.trainable_variables if variable_key(v) not in decayed]
    )
    return optimizer


def sum_over_replicas(gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Sums each gradient over the replicas (None stays None); call it in a replica."""
    present = [gradient for gradient in gradients if gradient is not None]
    context = tf.distribute.get_replica_context()
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if gradient is None else next(summed) for gradient in gradients]


def variable_key(variable) -> int:
    """Returns a key that is equal for a Keras variable and the TensorFlow variable inside it."""
    return id(native(variable))


def _map(function: Callable, gradient: tf.Tensor | None) -> tf.Tensor | None:
    return None if gradient is None else function(gradient)


def _run_if(condition: tf.Tensor, action: Callable[[], None]) -> None:
    def act():
        action()
        return tf.constant(True)

    tf.cond(condition, act, lambda: tf.constant(False))
