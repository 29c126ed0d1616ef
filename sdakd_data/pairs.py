"""Whether two images can be a pair: one rule for training, validation and `sdakd evaluate`."""

from __future__ import annotations

# a ground truth of validation and evaluation may be larger by less than so many pixels: it is cut to its input, whose
# makers often cropped it to a multiple of all usual scales first
SPARE = 24
SCALES = range(1, 17)  # other scales that a pair may be of

Sides = tuple[int, int]  # height and width, as decoded and turned upright


def fits(gt: Sides, lq: Sides, scale: int, spare: int = 1) -> bool:
    """Whether a ground truth is its input's size times the scale, or larger by less than ``spare`` pixels a side."""
    return all(0 <= large - small * scale < spare for large, small in zip(gt, lq, strict=True))


def misfit(gt: Sides, lq: Sides, scale: int, spare: int = 1) -> tuple[str, str] | None:
    """What is wrong with the sizes of a pair; None where they fit.

    Returns:
        What follows the name of the ground truth in a sentence, and what to do.
    """
    if fits(gt, lq, scale, spare):
        return None
    wanted = gt[0] // scale, gt[1] // scale
    fault = f'is {_shown(gt)} and its LQ image {_shown(lq)}; at scale {scale} that must be {_shown(wanted)}'
    if fits(gt, lq[::-1], scale, max(spare, scale)):
        return fault, 'one of them is turned: store both upright, since the EXIF orientation of a file is followed'
    if others := [other for other in SCALES if other != scale and fits(gt, lq, other)]:
        return (
            fault,
            f'they are a pair of scale {others[-1]}: write that scale, or give the images that belong together',
        )
    if fits(gt, lq, scale, scale):
        return fault, 'crop the ground truth to a multiple of the scale'
    return fault, 'give the images that belong together, or make the LQ image again from this ground truth'


def _shown(sides: Sides) -> str:
    return f'{sides[1]}x{sides[0]}'
