"""What `sdakd upscale` is given: which images and videos, and which result each of them becomes."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sdakd.compat import UserError
from sdakd.files.encoding import CONTAINERS, Wanted
from sdakd.files.images import ENDINGS, by_stem, find_files, find_images, stem
from sdakd.files.pictures import ending_of
from sdakd.files.videos import ENDINGS as VIDEOS
from sdakd.files.videos import check_pattern, has_number, is_pattern

PIPE = '-'
FASTEST = 1000  # frames per second


@dataclass(frozen=True)
class Plan:
    """What becomes what.

    Args:
        folder: Of the inputs.
        output: Of the results.
        pictures: Result -> input, relative to these folders.
        videos: Likewise. Where there is one alone, either may also be :data:`PIPE` or the pattern of numbered pictures.
        single: Whether one input is named, and no folder.
    """

    folder: Path
    output: Path
    pictures: dict[str, str]
    videos: dict[str, str]
    single: bool

    def path(self, name: str, folder: Path) -> str:
        """Where an input or a result is; :data:`PIPE` stays as it is."""
        return name if name == PIPE else str(folder / name)


def plan_of(images: str | Path, output: str | Path, suffix: str, ext: str) -> Plan:
    """Finds the inputs and names the results.

    Raises:
        UserError: No input there, two would become the same result, or a result would replace an input.
    """
    text = str(images)
    source = Path(images)
    numbered = is_pattern(text) and not source.exists()
    if text == PIPE or numbered:
        if numbered:
            check_pattern(text, '-i')
        return _of_video(text, Path() if text == PIPE else source.parent, source.name, str(output), suffix)
    if not source.exists():
        raise UserError('-i', f'{source} does not exist; give an image, a video or a folder.')
    if source.is_file() and source.suffix.lower() not in ENDINGS:
        return _of_video(text, source.parent, source.name, str(output), suffix)
    return _of_images(source, str(output), suffix, ext)


def _named(name: str, suffix: str, ending: str) -> str:
    return stem(name) + (f'_{suffix}' if suffix else '') + ending


def _result(name: str, suffix: str) -> str:
    """What a video becomes in a folder: of its own kind where that is written here, else an .mp4."""
    ending = Path(name).suffix.lower()
    # a .webm holds no H.264, which is what is written by default
    return _named(name, suffix, ending if ending in CONTAINERS and ending != '.webm' else '.mp4')


def _of_video(text: str, folder: Path, name: str, output: str, suffix: str) -> Plan:
    """One video: a file, numbered pictures or a pipe."""
    target, ending, bare = Path(output), Path(output).suffix.lower(), not os.path.isdir(output)
    pictures = is_pattern(text)
    if output == PIPE:
        plan = Plan(folder, Path(), {}, {PIPE: name}, True)
    elif has_number(output) and bare and ending not in VIDEOS:
        check_pattern(output, '-o')
        if pictures:
            raise UserError('-i and -o', 'both are numbered pictures; give their folders, for no video is made.')
        plan = Plan(folder, target.parent, {}, {target.name: name}, True)
    elif ending in CONTAINERS and bare:
        plan = Plan(folder, target.parent, {}, {target.name: name}, True)
    elif bare and ending in (*VIDEOS, *ENDINGS):
        known = ', '.join(CONTAINERS)
        raise UserError(
            '-o',
            f'{output} is no video that is written here ({known}); pictures are named by a number, as out/%05d.png.',
        )
    elif text == PIPE or pictures:
        raise UserError('-o', f'name a file for the video, such as {target / "video.mp4"}.')
    else:
        plan = Plan(folder, target, {}, {_result(name, suffix): name}, True)
    for made in plan.videos:
        _check_place(Path(plan.path(made, plan.output)), Path(text), '-o')
    return plan


def _of_images(source: Path, output: str, suffix: str, ext: str) -> Plan:
    """An image, or a folder of images and videos."""
    folder = source if source.is_dir() else source.parent
    ending = Path(output).suffix.lower()
    if output == PIPE:
        raise UserError('-o', 'a pipe takes the frames of a video; give a folder for images.')
    if ending in CONTAINERS and not os.path.isdir(output):
        raise UserError(
            '-o', f'{output} is a video and {source} is not; frames become one when they are given as FOLDER/%05d.png.'
        )
    videos: list[str] = []
    if source.is_dir():
        if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
            raise UserError('-o', f'{output} lies in the folder of the inputs (-i {source}); put it beside that one.')
        videos = find_files(str(source), VIDEOS)
        names = []
        if not videos or find_files(str(source), ENDINGS):
            names, note = find_images(str(source), '-i', VIDEOS)
            sys.stderr.write(note)
    else:
        names = [source.name]
    results = by_stem(names, str(folder), lambda name: _named(name, suffix, ending_of(folder / name, ext)))
    films = by_stem(videos, str(folder), lambda name: _result(name, suffix))
    for made in (*results, *films):
        _check_place(Path(output, made), source if source.is_file() else None, '--suffix')
    return Plan(folder, Path(output), results, films, source.is_file())


def _check_place(target: Path, source: Path | None, flag: str) -> None:
    if str(target) == PIPE:
        return
    if target.is_dir():
        change = 'change --suffix' if flag == '--suffix' else 'choose another name'
        raise UserError('-o', f'{target} is a folder, and a result would get its name; remove it or {change}.')
    if source and source.exists() and target.exists() and target.samefile(source):
        raise UserError('-o', f'the result would replace {source} itself; choose another folder or give --suffix.')


def rate_of(fps: object) -> Fraction:
    """Frames per second: a number or a fraction such as ``24000/1001``.

    Raises:
        UserError: It is none.
    """
    if re.fullmatch(r'\d+(\.\d+)?|\d+/\d+', str(fps)) and not re.search(r'/0*$', str(fps)):
        rate = Fraction(str(fps))
        if 0 < rate <= FASTEST and rate.denominator < 1 << 20:
            return rate
    raise UserError('--fps', f'{fps} is no rate; give frames per second such as 24 or 24000/1001, up to {FASTEST}.')


def check_flags(plan: Plan, wanted: Wanted, fps: object, of_images: dict[str, bool]) -> None:
    """Checks that flags mean something to what is given.

    Args:
        plan: What is given.
        wanted: What the user says of videos.
        fps: Value of ``--fps``.
        of_images: Flags that mean something to images alone, and whether they are given.

    Raises:
        UserError: One does not.
    """
    if not plan.videos:
        for flag in [*wanted.given(), *(['--fps'] if fps is not None else [])]:
            raise UserError(flag, 'it is about videos, and none is among the inputs; leave the flag out.')
        return
    numbered = plan.single and is_pattern(*plan.videos.values())
    if fps is not None and not numbered:
        raise UserError('--fps', 'it is about numbered pictures (-i frames/%05d.png); a video tells its times itself.')
    if not plan.pictures:
        for flag, given in of_images.items():
            if given:
                raise UserError(flag, 'it is about images, and the input is a video; leave the flag out.')
    elif of_images['--face_enhance']:
        raise UserError('--face_enhance', 'videos are among the inputs, whose faces are not restored; leave it out.')
    if plan.single:
        (made,) = plan.videos
        if made == PIPE or is_pattern(made):
            flags = [flag for flag in wanted.given() if flag != '--pix_fmt' or made != PIPE]
            kind = 'a pipe holds frames as they are' if made == PIPE else 'the result are pictures'
            for flag in flags:
                raise UserError(flag, f'{kind}; leave the flag out.')
