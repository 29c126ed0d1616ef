"""A pair pool that uses every degraded pair, and what the teachers make of it, several times."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from sdakd_data.answers import Answer

LEVELS = 255  # of images in files
ROOM = 4  # input pixels by which crops of a pair differ, down and to the right


def packed(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as they are saved: a quarter of the size, uint8, where all values are levels of 8 bits."""
    images = images.detach().cpu()
    levels = (images * LEVELS).round().to(torch.uint8)
    return levels if torch.equal(unpacked(levels), images) else images


def unpacked(images: torch.Tensor, device: torch.device | str = 'cpu') -> torch.Tensor:
    """What was given to :func:`packed`, in every bit."""
    return (images.float() / LEVELS if images.dtype == torch.uint8 else images).to(device)


@dataclass
class _Entry:
    lq: torch.Tensor  # (3, s, s)
    gt: torch.Tensor
    left: int  # draws until it goes
    answers: dict[str, Answer] = field(default_factory=dict)  # by teacher, without the batch dimension


class ReusingPool:
    """Pairs of Real-ESRGAN's degradation, each of which is drawn ``reuse`` times before it leaves.

    Degradation, and the teacher's pass, are paid once for ``reuse`` crops. A new batch comes in whenever there is room
    for it. Those that fill the pool at first get a random part of their draws, so that they do not all leave at once.

    Args:
        size: The number of pairs.
        reuse: Draws of each.
        crop: Side of a crop in input pixels.
        margin: Input pixels at a pair's border that belong to no crop: context for the teacher.
        scale: Of the ground truth.
        answer: Makes the :class:`Answer` of a teacher for a batch of inputs: its name, the inputs ``(N, 3, s, s)``,
            whether feature maps and whether its image are wanted.
    """

    def __init__(
        self,
        size: int,
        reuse: int,
        crop: int,
        margin: int,
        scale: int,
        answer: Callable[[str, torch.Tensor, bool, bool], Answer],
    ) -> None:
        self.size, self.reuse, self.crop, self.margin, self.scale = size, reuse, crop, margin, scale
        self.answer = answer
        self.entries: list[_Entry] = []
        self.full = False
        # offsets of crops are multiples of what a pixel of the smallest map covers; below x4, RRDBNet makes blocks
        self.grid = max(1, 4 // scale)
        self.drawn: list[tuple[_Entry, int, int, bool]] = []

    def wants(self, batch: int) -> bool:
        """Whether a new batch is to be degraded and added before the next draw."""
        return len(self.entries) < batch or len(self.entries) + batch <= self.size

    def add(self, lq: torch.Tensor, gt: torch.Tensor) -> None:
        """Takes a batch in, ``(N, 3, s, s)`` and ``(N, 3, s * scale, s * scale)``."""
        for number in range(len(lq)):
            left = self.reuse if self.full else random.randint(1, self.reuse)
            self.entries.append(_Entry(lq[number].clone(), gt[number].clone(), left))
        self.full = self.full or not self.wants(len(lq))

    def draw(self, batch: int, flips: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of random crops of random pairs, input and ground truth; ``flips`` mirrors half of them."""
        side = self.entries[0].lq.shape[-1]
        self.drawn = []
        for entry in random.sample(self.entries, batch):
            first, last = -(-self.margin // self.grid), (side - self.margin - self.crop) // self.grid
            top, left = (self.grid * random.randint(first, last) for _ in range(2))
            self.drawn.append((entry, top, left, flips and random.random() < 0.5))
            entry.left -= 1
        self.entries = [entry for entry in self.entries if entry.left]
        return self._stack(lambda entry: entry.lq), self._stack(lambda entry: entry.gt)

    def answers(self, who: str, with_features: bool, with_image: bool = True) -> Answer:
        """What a teacher makes of the batch last drawn, cut and mirrored as the batch is.

        It is asked about all pairs in the pool that it has not seen, a batch at a time.
        """
        entries = {id(entry): entry for entry in (*(each[0] for each in self.drawn), *self.entries)}
        lacking = [
            entry
            for entry in entries.values()
            if who not in entry.answers
            or (with_image and entry.answers[who].image is None)
            or (with_features and not entry.answers[who].features)
        ]
        for start in range(0, len(lacking), len(self.drawn)):
            part = lacking[start : start + len(self.drawn)]
            found = self.answer(who, torch.stack([entry.lq for entry in part]), with_features, with_image)
            for number, entry in enumerate(part):
                # in half precision the maps take the memory that the images do
                maps = {tap: each[number].half() for tap, each in found.features.items()}
                self.grid = max([self.grid, *(entry.lq.shape[-1] // each.shape[-1] for each in maps.values())])
                image = None if found.image is None else found.image[number].clone()
                entry.answers[who] = Answer(image, maps)
        features = {}
        if with_features:
            taps = self.drawn[0][0].answers[who].features
            features = {
                tap: self._stack(lambda entry, tap=tap: entry.answers[who].features[tap]).float() for tap in taps
            }
        image = self._stack(lambda entry: entry.answers[who].image) if with_image else None
        return Answer(image, features)

    def state(self) -> dict:
        """What a training state keeps of it: all pairs, and what the teachers have made of them."""
        entries = [
            {
                'lq': packed(entry.lq),
                'gt': packed(entry.gt),
                'left': entry.left,
                'answers': {who: (answer.image, dict(answer.features)) for who, answer in entry.answers.items()},
            }
            for entry in self.entries
        ]
        return {'entries': entries, 'full': self.full, 'grid': self.grid}

    def load_state(self, state: Mapping, device: torch.device) -> None:
        """Goes on with what :meth:`state` returned, unless crops or teachers have another size now."""
        if 'entries' not in state:
            return
        entries = []
        for each in state['entries']:
            entry = _Entry(unpacked(each['lq'], device), unpacked(each['gt'], device), each['left'])
            for who, (image, features) in each['answers'].items():
                entry.answers[who] = Answer(
                    None if image is None else image.to(device),
                    {tap: maps.to(device) for tap, maps in features.items()},
                )
            entries.append(entry)
        least = self.crop + 2 * self.margin
        sides = [(entry.lq.shape[-1], entry.gt.shape[-1]) for entry in entries]
        if all(lq >= least and gt == self.scale * lq for lq, gt in sides):
            self.entries, self.full, self.grid = entries[: self.size], state['full'], state['grid']

    def _stack(self, part: Callable[[_Entry], torch.Tensor]) -> torch.Tensor:
        crops = []
        for entry, top, left, flip in self.drawn:
            image, side = part(entry), entry.lq.shape[-1]
            here = [value * image.shape[-1] // side for value in (top, left, self.crop)]
            crop = image[:, here[0] : here[0] + here[2], here[1] : here[1] + here[2]]
            crops.append(crop.flip(-1) if flip else crop)
        return torch.stack(crops)
