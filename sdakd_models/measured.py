"""What ``precision: auto`` means: bfloat16 where passes take less time in it, measured when a run on a CPU begins."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from sdakd_arch.inference.onednn import computes_bf16
from sdakd_models.precision import Lowered
from sdakd_models.scenario import Scenario
from sdakd_models.sdakd_model import SDAKDModel

IMAGES, ROUNDS = 2, 5  # of a pass, and how often each is timed
WORTH = 0.95  # of the time in float32: what saves less is not worth the digits


def settle_precisions(opt: dict, model: SDAKDModel) -> None:
    """Chooses what ``auto`` stands for in a run that begins, and keeps it in ``opt['precisions']`` by role.

    A GPU computes in bf16 where it has units for it. On a CPU that has them, the passes of every role are timed in both
    precisions, forward and, where something learns by them, backward. Elsewhere it is ``tf32``, torch's default.

    Args:
        opt: The completed options.
        model: The model of a rehearsal, which is thrown away.
    """
    precisions = model.cast.precisions
    roles = [role for role in ('student', 'discriminator', 'perceptual', *model.teachers) if precisions.is_auto(role)]
    if not roles or opt['path'].get('resume_state'):
        return
    if opt['num_gpu']:
        found = dict.fromkeys(roles, 'bf16' if torch.cuda.is_bf16_supported() else 'tf32')
        said = f'{found[roles[0]]}, for which this GPU has units'
    elif not computes_bf16():
        found, said = dict.fromkeys(roles, 'tf32'), 'float32, because this processor has no units for bf16'
    else:
        times = _times(model, Scenario.read(opt), roles)
        found = {role: 'bf16' if both['bf16'] < WORTH * both['tf32'] else 'tf32' for role, both in times.items()}
        said = ', '.join(
            f'{role} {"bf16" if found[role] == "bf16" else "float32"} ({1e3 * both["bf16"]:.0f} ms a pass in bf16, '
            f'{1e3 * both["tf32"]:.0f} ms in float32)'
            for role, both in times.items()
        )
    if opt['dist']:  # all processes compute alike
        kept = [found]
        torch.distributed.broadcast_object_list(kept, 0)
        found = kept[0]
    opt['precisions'], opt['precision'] = found, f'Precision auto: {said}.'
    precisions.measured = found


def _times(model: SDAKDModel, scenario: Scenario, roles: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of a pass by role and precision, medians of rounds in which all take turns."""
    batch = model.noise_batch(scenario, min(IMAGES, scenario.datasets['train']['batch_size_per_gpu']))
    if scenario.faces:
        model.feed_data(batch)
    else:  # neither degraded nor put into a pool
        model.lq, model.gt = (batch[name].to(model.device) for name in ('lq', 'gt'))
    passes = {role: work for role, work in _passes(model).items() if role in roles}
    times = {role: {'tf32': [], 'bf16': []} for role in passes}
    for number in range(ROUNDS + 1):
        for role, work in passes.items():
            for kind, found in times[role].items():
                model.cast.precisions.measured = {role: kind}
                begun = time.perf_counter()
                work()
                if number:  # the first one compiles
                    found.append(time.perf_counter() - begun)
    return {role: {kind: statistics.median(found) for kind, found in both.items()} for role, both in times.items()}


def _passes(model: SDAKDModel) -> dict[str, Callable[[], None]]:
    """By role, a pass and what is derived from it; where several networks have a role, of the first one."""
    terms = (module for term in model.terms.values() for module in term.loss.modules())
    backbone = next((module for module in terms if isinstance(module, Lowered)), None)
    discriminator = next(iter(model.discriminators.values()), None)
    passes = {name: partial(_answer, model, name) for name in model.teachers}
    if model.cast.student is not None:
        passes['student'] = lambda: model.generate(model.cast.student, 'student').mean().backward()
    if discriminator is not None:
        network = discriminator.bare.requires_grad_(True)
        passes['discriminator'] = lambda: model.run(network, model.gt, 'discriminator').mean().backward()
    if backbone is not None:
        image = model.gt.clone().requires_grad_()
        passes['perceptual'] = lambda: sum(each.mean() for each in backbone.maps(image)).backward()
    return passes


@torch.no_grad()
def _answer(model: SDAKDModel, teacher: str) -> None:
    model.generate(model.teachers[teacher], teacher)
