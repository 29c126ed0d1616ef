"""In which precision passes run: of everyone who learns in ``train:precision``, of a teacher in its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from sdakd_models.scenario import Scenario

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def unscaled() -> torch.cuda.amp.GradScaler:
    """A scaler that leaves all losses as they are."""
    if hasattr(torch.amp, 'GradScaler'):
        return torch.amp.GradScaler(enabled=False)
    return torch.cuda.amp.GradScaler(enabled=False)  # before torch 2.3


class Lowered(nn.Module):
    """The backbone of a perceptual loss in its precision; its maps, a list or a mapping, are float32.

    Args:
        network: The backbone.
        precisions: Of the run.
        contiguous: Whether the loss wants maps whose memory is in the order of their dimensions.
        keeps: Whether the maps of targets are kept, for further comparisons with them, until :meth:`forget`.
    """

    def __init__(self, network: nn.Module, precisions: Precisions, contiguous: bool, keeps: bool) -> None:
        super().__init__()
        self.network, self.precisions, self.contiguous, self.keeps = network, precisions, contiguous, keeps
        self._kept: list[tuple] = []  # images without gradient, how often they had been changed, and their maps

    def forward(self, image: torch.Tensor) -> list[torch.Tensor] | dict[str, torch.Tensor]:
        if not self.keeps or image.requires_grad:
            return self._run(image)
        found = next((maps for known, version, maps in self._kept if _same(image, known, version)), None)
        if found is None:
            found = self._run(image)
            self._kept.append((image.detach(), image._version, found))  # while it is kept, nothing else has its memory
        return found

    def forget(self) -> None:
        """Forgets what it was shown: another batch comes."""
        self._kept.clear()

    def _run(self, image: torch.Tensor) -> list[torch.Tensor] | dict[str, torch.Tensor]:
        with self.precisions.autocast('perceptual'):
            maps = self.network(image)
        if isinstance(maps, Mapping):
            return {name: self._plain(each) for name, each in maps.items()}
        return [self._plain(each) for each in maps]

    def _plain(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.float().contiguous() if self.contiguous else maps.float()

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps of an image, whatever the backbone calls them."""
        found = self(image)
        return list(found.values()) if isinstance(found, Mapping) else found


def _same(image: torch.Tensor, kept: torch.Tensor, version: int) -> bool:
    """Whether an image is one that is kept; equal values are looked for where nothing has to wait for that."""
    if image.shape != kept.shape or kept._version != version:
        return False
    if (image.data_ptr(), image.stride(), image._version) == (kept.data_ptr(), kept.stride(), version):
        return True
    return image.device.type == 'cpu' and torch.equal(image, kept)


def compile_in_place(network: nn.Module) -> None:
    """Has a network be compiled when it first runs, for one size; names of parameters stay."""
    import torch._dynamo

    # else what was compiled for a network without feature taps would be taken for another one that has them
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    network.compile(dynamic=False)


@contextmanager
def eagerly() -> Iterator[None]:
    """Runs compiled networks as they are: what has another size than training batches would be compiled anew."""
    with torch.compiler.set_stance('force_eager') if hasattr(torch.compiler, 'set_stance') else nullcontext():
        yield


class Precisions:
    """The precision of every pass of a training, and the memory layout that goes with it.

    A pass has a role: ``student`` (everyone who learns on the generators' side, adapters too), ``discriminator``,
    ``perceptual`` (backbones of perceptual terms) or the name of a teacher. ``auto`` is what was measured when the
    run began (:mod:`sdakd_models.measured`), or what the device has units for.

    Args:
        scenario: The run.
        device: Where it trains.
    """

    def __init__(self, scenario: Scenario, device: torch.device) -> None:
        self.device, self.wanted = device, scenario.train.precision
        self.teachers = {name: entry.precision or self.wanted for name, entry in scenario.teachers.items()}
        self.measured: Mapping[str, str] = scenario.file.get('precisions') or {}
        self.layout = scenario.train.channels_last

    def of(self, role: str) -> str:
        """``fp32``, ``tf32``, ``bf16`` or ``fp16``."""
        return self.measured.get(role, 'tf32') if self.is_auto(role) else self.teachers.get(role, self.wanted)

    def is_auto(self, role: str) -> bool:
        """Whether its precision is measured."""
        return self.teachers.get(role, self.wanted) == 'auto'

    def channels_last(self, role: str) -> bool:
        """Whether a network lies in channels-last memory: where nothing is asked for, everywhere but in ``fp32`` on a
        GPU, whose units for it have other precisions."""
        if self.layout is not None:
            return self.layout
        return self.device.type != 'cuda' or self.of(role) != 'fp32'

    def begin(self) -> None:
        """Sets what torch holds for the whole process: whether convolutions of a GPU may use TF32."""
        torch.backends.cudnn.allow_tf32 = self.of('student') != 'fp32'

    @contextmanager
    def autocast(self, role: str) -> Iterator[None]:
        """The precision of the passes of a role; their results may be in half precision."""
        kind = self.of(role)
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = before if role not in self.teachers else kind != 'fp32'
        try:
            if kind in DTYPES:
                with torch.autocast(self.device.type, DTYPES[kind]):
                    yield
            else:
                yield
        finally:
            torch.backends.cudnn.allow_tf32 = before

    def scaler(self) -> torch.amp.GradScaler:
        """What scales all losses where they are derived in fp16, in which small gradients would be 0; else it does
        nothing."""
        scales = 'fp16' in map(self.of, ('student', 'discriminator', 'perceptual'))
        return torch.amp.GradScaler(self.device.type) if scales and self.device.type != 'meta' else unscaled()
