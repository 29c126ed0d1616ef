"""What `sdakd upscale` does with its inputs one by one, and what it says at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd.commands.interface import Outcome
from sdakd.commands.upscale.inputs import PIPE, Plan
from sdakd.compat import FullError, UnusableError, UserError
from sdakd.decoding import first_line
from sdakd.files.encoding import Wanted, choose
from sdakd.files.pictures import check_format, filled, read, write_picture
from sdakd.files.segments import LENGTH
from sdakd.files.videos import Pictures, Video, has_av, is_pattern
from sdakd.progress import Progress, say

if TYPE_CHECKING:
    from sdakd.commands.upscale.record import Record
    from sdakd.commands.upscale.video import Work


@dataclass
class Upscaled(Outcome):
    """What was enlarged.

    Args:
        files: Result by input, both as paths; ``-`` is a pipe.
        failed: Why an input has no result, one line each.
        text: For people, with the time.
        kept: Which of the inputs have their result from an earlier run with the same settings.
        damaged: What is damaged in inputs whose result holds the rest, one line each.
        kind: What the inputs are, for a sentence.
    """

    files: dict[Path, Path]
    failed: list[str]
    folder: Path
    output: Path
    text: str
    kept: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    kind: str = 'images'

    def __str__(self) -> str:
        return self.text

    def check(self) -> None:
        if self.failed:
            first = '; '.join(self.failed[:3]) + ('; ...' if len(self.failed) > 3 else '')
            total = len(self.failed) + len(self.files)
            raise UserError(
                f'{len(self.failed)} of {total} {self.kind} in {self.folder} could not be upscaled ({first}); '
                f'the others are in {self.output}.'
            )
        if self.damaged:
            raise UserError('-i', f'{"; ".join(self.damaged[:3])}; what could be read was upscaled.')


def first_looks(plan: Plan, wanted: Wanted, rate: Fraction) -> Video | Pictures | None:
    """Sees that what is given can be used, before the model is loaded; a single video is returned opened.

    Raises:
        UserError: It cannot.
    """
    if plan.pictures and plan.single:
        (source,) = plan.pictures.values()
        try:
            read(plan.folder / source)
        except UnusableError as error:
            raise UserError('-i', f'{plan.folder / source} {error.reason}.') from None
    if not plan.videos:
        return None
    has_av('-i')
    for made in plan.videos:
        if made != PIPE and not is_pattern(made):
            choose(wanted, plan.output / made, '-o')
    if not plan.single:
        return None
    from sdakd.commands.upscale.video import opened

    (source,) = plan.videos.values()
    return opened(plan.path(source, plan.folder), rate)


def left_behind(plan: Plan) -> str:
    """What a command leaves behind that is stopped, and how to go on."""
    if PIPE in (*plan.videos, *plan.videos.values()):
        return 'what goes through a pipe begins anew; give both ends of it again'
    whole = f'what is finished stays, of a video in pieces of {LENGTH} frames'
    what = whole if plan.videos else 'the finished images stay'
    return f'{what}; give the same command again to go on'


def _why(error: Exception) -> str:
    """What failed an input, as the end of a sentence."""
    if isinstance(error, UnusableError):
        return error.reason
    return f'cannot be upscaled ({error.sentence.rstrip(".") if isinstance(error, UserError) else first_line(error)})'


def enlarge_images(
    plan: Plan,
    record: Record,
    enlarged: Callable,
    size_of: Callable,
    outscale: float | None,
    settle: Callable,
    overwrite: bool,
    with_what: str,
    done: Upscaled,
) -> None:
    """Enlarges the images of a plan and adds to what is done."""
    folder, output, results = plan.folder, done.output, plan.pictures
    kept = {} if overwrite or plan.single else {t: s for t, s in results.items() if record.holds(t, folder / s)}
    if kept:
        say(f'upscale: {len(kept)} of {len(results)} images are kept from an earlier run; --overwrite makes them anew')
    due = {target: source for target, source in results.items() if target not in kept}
    done.kept += [folder / source for source in kept.values()]
    done.files |= {folder / source: output / target for target, source in kept.items()}
    megapixels, begun = 0.0, time.perf_counter()
    for target, source in Progress('upscale', len(due), 'images').over(due.items()):
        try:
            picture = read(folder / source)
            height, width, *channels = picture.pixels.shape
            check_format((*size_of(height, width, outscale), *channels), Path(target).suffix)
            pixels = filled(picture.pixels)
            settle(pixels, len(due))
            made = enlarged(pixels)
            picture.pixels = pixels = None  # it may be large, and is not needed any more
            write_picture(output / target, made, picture.profile)
        except FullError:
            raise
        except Exception as error:  # the model, a codec or a name may fail one image: the others go on
            done.failed.append(f'{source} {_why(error)}')
            if plan.single:
                raise UserError('-i', f'{folder / source} {_why(error)}.') from None
            say(f'{folder / source} {_why(error)}')
            continue
        record.add(target, folder / source)
        megapixels += made.shape[0] * made.shape[1] / 1e6
        done.files[folder / source] = output / target
    seconds = time.perf_counter() - begun
    what = next(iter(results)) if plan.single else f'{len(done.files)} of {len(results)} images'
    done.text += (
        f'upscale: {what} in {output}, {with_what}: {seconds:.1f} s, '
        f'{megapixels / seconds:.2f} megapixels of output per second\n'
    )


def enlarge_videos(
    plan: Plan, record: Record, work: Work, video: Video | Pictures | None, with_what: str, done: Upscaled
) -> None:
    """Enlarges the videos of a plan and adds to what is done."""
    from sdakd.commands.upscale.video import enlarge, opened

    for target, source in plan.videos.items():
        place, name = plan.path(source, plan.folder), plan.path(target, done.output)
        if not plan.single and not work.overwrite and record.holds(target, Path(place)):
            say(f'upscale: {target} is kept from an earlier run; --overwrite makes it anew')
            done.kept.append(Path(place))
            done.files[Path(place)] = Path(name)
            continue
        try:
            made = enlarge(video or opened(place, work.rate), name, work)
        except (FullError, BrokenPipeError):
            raise
        except Exception as error:  # as of images: the others go on
            if plan.single:
                raise error if isinstance(error, UserError) else UserError('-i', f'{place} {_why(error)}.') from None
            done.failed.append(f'{source} {_why(error)}')
            say(f'{place} {_why(error)}')
            continue
        if made.fault:
            done.damaged.append(f'{place} {made.fault}')
        elif not plan.single:
            record.add(target, Path(place))
        done.files[Path(place)] = Path(name)
        line = f'upscale: {target} in {done.output}, {with_what}: {made}\n'
        if target == PIPE:
            say(line.replace(f'{target} in {done.output}', 'standard output').rstrip())
        else:
            done.text += line
