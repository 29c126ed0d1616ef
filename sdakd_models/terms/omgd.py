"""OMGD: structure, smoothness and channel means, from one or several teachers at once."""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta, field

from sdakd.compat import near
from sdakd_arch.pairing import Pairing, pair_taps
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.options import Block, TermBlock
from sdakd_models.registry import register_term
from sdakd_models.terms.base import SIDE, FeatureTerm, Layers


@register_term('omgd')
class OMGDTerm(FeatureTerm):
    """SSIM and channel means against those of one or several teachers, and total variation: OMGD less `imitation`."""

    class Options(Block):
        """What the block holds besides the arguments of its loss."""

        teachers: Annotated[
            list[str], Meta(min_length=1, description='Whom the student imitates: `teacher`, entries of `teachers`.')
        ] = field(default_factory=lambda: ['teacher'])
        layers: Annotated[
            dict[str, Layers] | None,
            Meta(description="By teacher: taps, or student tap: teacher tap; `[]` leaves that teacher's features out."),
        ] = None

    needs_image = True
    adapter = 'connector'
    same_size = False  # means over height and width are compared

    def __init__(self, block: TermBlock, cast: Cast) -> None:
        teachers = block.options.teachers
        if len(set(teachers)) != len(teachers):
            raise block.options.error(f'a teacher stands twice in {teachers}.', 'teachers')
        for name in block.options.layers or {}:
            if name not in teachers:
                raise block.options.error(
                    f'this teacher is not under teachers; {near(name, teachers)}.', f'layers:{name}'
                )
        super().__init__(block, cast)

    def pair(self, cast: Cast, teacher: str) -> Pairing:
        layers = (self.options.layers or {}).get(teacher)
        if layers is not None and not layers:
            return Pairing({}, {})
        return pair_taps(cast.student, cast.teachers[teacher], layers, self.options.key(f'layers:{teacher}'), SIDE)

    def key(self, teacher: str, tap: str) -> str:
        return f'{teacher}/{tap}'

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, maps in self.adapted(context).items():
            for part, value in self.loss(*context.pair(name), *maps).items():
                if part == 'tv':  # the same for every teacher
                    found[part] = found.get(part, 0) + value
                else:
                    found[part if name == 'teacher' else f'{part}_{name}'] = value
        return found
