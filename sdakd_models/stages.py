"""Stages: which terms are on at an iteration, and how fast is learned. A pure function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, to_builtins

Positive = Annotated[float, Meta(gt=0, le=1e9)]  # the upper bound refuses infinity
Count = Annotated[int, Meta(ge=0)]


class MultiStepLR(Struct, forbid_unknown_fields=True, tag_field='type'):
    """The learning rate is multiplied by ``gamma`` after each milestone."""

    milestones: Annotated[list[Count], Meta(description="Iterations, counted from the stage's beginning.")]
    gamma: Annotated[Positive, Meta(description='Factor at each milestone.')] = 0.5

    def factor(self, done: int, iters: int) -> float:
        return self.gamma ** sum(done >= milestone for milestone in self.milestones)


class CosineAnnealingLR(Struct, forbid_unknown_fields=True, tag_field='type'):
    """The learning rate falls to ``eta_min`` times itself along half a cosine over the stage."""

    eta_min: Annotated[float, Meta(ge=0, le=1, description="Fraction left at the stage's end.")] = 0.0

    def factor(self, done: int, iters: int) -> float:
        return self.eta_min + (1 - self.eta_min) * 0.5 * (1 + math.cos(math.pi * done / iters))


class Stage(Struct, forbid_unknown_fields=True):
    """One entry of ``train:stages``."""

    iters: Annotated[int, Meta(ge=1, description='Length of the stage in iterations.')]
    terms: Annotated[
        list[str],
        Meta(
            min_length=1,
            description='Terms of the objective that are on: pixel, perceptual, '
            'feature, gan, or gan:<name> for an entry of discriminators.',
        ),
    ]
    lr_g: Annotated[
        Positive | None,
        Meta(description='Learning rate of the student and its adapters; without it they rest, discriminators learn.'),
    ] = None
    lr_d: Annotated[Positive | None, Meta(description='Learning rate of the discriminators that learn.')] = None
    warmup_iter: Annotated[Count, Meta(description='Iterations over which the rates rise linearly.')] = 0
    scheduler: Annotated[MultiStepLR | CosineAnnealingLR | None, Meta(description='Decay within the stage.')] = None
    grad_clip: Annotated[Positive | None, Meta(description='Largest 2-norm of the gradients of a player.')] = None
    seconds: Annotated[
        Positive | None,
        Meta(
            description='Measured seconds of an iteration, for the time left in the log; from its first steps on the '
            'stage is measured.'
        ),
    ] = None
    reset_optimizers: Annotated[bool, Meta(description="Forget Adam's moments at the stage's beginning.")] = True

    def factor(self, step: int) -> float:
        """Share of the base learning rate at ``step``, 1 for the first iteration of the stage."""
        factor = self.scheduler.factor(step - 1, self.iters) if self.scheduler else 1.0
        return factor * min(1.0, step / self.warmup_iter) if self.warmup_iter else factor


class Moment(Struct, frozen=True):
    """Where an iteration lies: in which stage, and at which step of it (1 is the first)."""

    index: int
    name: str
    stage: Stage
    step: int


class Plan:
    """The ordered stages of a run.

    Args:
        stages: Stage by name, in order.
        first: Name of the stage to begin with; earlier ones are left out. Default: the first.
    """

    def __init__(self, stages: Mapping[str, Stage], first: str | None = None) -> None:
        names = list(stages)
        self.names = names[names.index(first) if first else 0 :]
        self.stages = [stages[name] for name in self.names]
        self.ends = [sum(stage.iters for stage in self.stages[: i + 1]) for i in range(len(self.stages))]
        self.total_iter = sum(stage.iters for stage in self.stages)
        self.trains_student = any(stage.lr_g is not None for stage in self.stages)

    def at(self, iteration: int) -> Moment:
        """The moment of an iteration, counted from 1; clamped, because BasicSR's loop leaves one past the last."""
        iteration = min(max(iteration, 1), self.total_iter)
        index = next(i for i, end in enumerate(self.ends) if iteration <= end)
        stage = self.stages[index]
        return Moment(index, self.names[index], stage, iteration - (self.ends[index] - stage.iters))

    def state(self) -> list[list]:
        """What a training state keeps of it: names and values of all stages, but for how long they take."""
        return [
            [name, {key: value for key, value in to_builtins(stage).items() if key != 'seconds'}]
            for name, stage in zip(self.names, self.stages, strict=True)
        ]

    def change(self, before: list[list]) -> str:
        """The first difference from what :meth:`state` returned for another plan, as the rest of a sentence.

        It begins with what a key below ``train:stages`` begins with; empty where there is none.
        """
        known, now = dict(before), dict(self.state())
        if [*known] != [*now]:
            return f': they were {", ".join(known)} when the run began, and are {", ".join(now)}'
        for name, values in now.items():
            for key in dict.fromkeys([*values, *known[name]]):
                old, new = known[name].get(key), values.get(key)
                if old != new:
                    return f':{name}:{key}: it was {old!r} when the run began, and is {new!r}'
        return ''

    def learning_rate(self, iteration: int, side: Literal['g', 'd'], own: float | None = None) -> float:
        """The rate of the generator's or the discriminators' side, or one of a player's own; 0 where there is none."""
        moment = self.at(iteration)
        base = own if own is not None else moment.stage.lr_g if side == 'g' else moment.stage.lr_d
        return (base or 0.0) * moment.stage.factor(moment.step)


class StageMark(float):
    """The number of the stage in force for TensorBoard; for the console its name and progress as well.

    BasicSR's message logger formats every logged value with ``.4e``: this value formats itself.
    """

    def __new__(cls, plan: Plan, moment: Moment) -> StageMark:
        mark = super().__new__(cls, moment.index + 1)
        mark.text = f'{moment.index + 1}/{len(plan.stages)} {moment.name} {moment.step:,d}/{moment.stage.iters:,d}'
        return mark

    def __format__(self, _spec: str) -> str:
        return self.text


class EveryOr(int):
    """A frequency for BasicSR's loop that is also met at some iterations: the ends of stages.

    The loop asks ``current_iter % frequency == 0``; Python asks the right operand first when it is a subclass.
    """

    def __new__(cls, frequency: int, also: tuple[int, ...]) -> EveryOr:
        every = super().__new__(cls, frequency)
        every.also = tuple(also)
        return every

    def __rmod__(self, iteration: int) -> int:
        return 0 if iteration in self.also else iteration % int(self)

    def __reduce__(self):
        return EveryOr, (int(self), self.also)
