"""Everyone in a run: student, teachers, discriminators, terms, and the players that learn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from basicsr.archs.vgg_arch import VGGFeatureExtractor
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdakd.compat import Mistakes, UserError
from sdakd_arch.backbones import PerceptualBackbone
from sdakd_arch.channel_masks import ChannelMasks
from sdakd_arch.families import family_of, untold
from sdakd_arch.foreign import Foreign, needs_spandrel, open_foreign
from sdakd_arch.placebo import shuffle
from sdakd_arch.shared_norm import share_statistics
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.weights import fingerprint, infer_network, load_into
from sdakd_arch.width import build, build_told, check_channels, initialise
from sdakd_data.randomness import aside
from sdakd_models.cotraining import CotrainedTeacher
from sdakd_models.options import DiscriminatorBlock, TeacherBlock
from sdakd_models.parts import InParts
from sdakd_models.players import Discriminator, Player, freeze
from sdakd_models.precision import DTYPES, Lowered, Precisions, compile_in_place
from sdakd_models.reader import read_state
from sdakd_models.registry import TERMS
from sdakd_models.scenario import Scenario
from sdakd_models.selection import Selection


class Cast:
    """Builds everyone that a run needs, with the weights of their files.

    Args:
        scenario: The run.
        device: Where: the device of the training, or ``'meta'`` for the checks, where running a network costs nothing
            and losses are not built.

    Attributes:
        student: The student without wrapper; None where discriminators alone are trained.
        net_g: The student as it is called, wrapped for distributed training.
        average: The student's exponential moving average; None without one.
        teachers: By name, frozen; those that learn along as the student sees them.
        fingerprints: Of the teachers that stay as they are, by name.
        cotrained: The teachers that learn along.
        discriminators: By name.
        players: Everyone who learns.
        taps: What forward passes record, by ``'student'`` or the teacher's name.
        backbones: Of perceptual losses, as far as these are built.
        precisions: Of the passes.
        scaler: Scales all losses in fp16.

    Raises:
        UserError: Networks cannot be built, files do not fit, or a term refuses the networks.
    """

    def __init__(self, scenario: Scenario, device: torch.device | str) -> None:
        self.scenario, self.device = scenario, torch.device(device)
        self.precisions = Precisions(scenario, self.device)
        self.scaler = self.precisions.scaler()
        self.players: list[Player] = []
        self.taps: dict[str, FeatureTaps] = {}
        self.student = self.net_g = self.average = None
        self.teachers: dict[str, nn.Module] = {}
        self.backbones: list[Lowered] = []
        self.fingerprints: dict[str, str] = {}
        self.discriminators: dict[str, Discriminator] = {}
        self._terms: dict[str, Any] = {}
        with Mistakes() as mistakes:
            if scenario.network_g is not None:
                with mistakes.collect():
                    self._add_student(scenario.network_g)
            for name, entry in scenario.teachers.items():
                with mistakes.collect():
                    self.teachers[name] = self._teacher(name, entry)
            learning = [name for name in self.teachers if scenario.teachers[name].cotrain is not None]
            self.cotrained = [self._cotrained(name) for name in learning]
            for name, entry in scenario.discriminators.items():
                with mistakes.collect():
                    self.discriminators[name] = self._discriminator(entry)
            for discriminator in self.discriminators.values():
                with mistakes.collect():
                    self._select(discriminator)
        if self.on_meta:  # batches of one image
            for network in (*[player.bare for player in self.players], *self.teachers.values()):
                network.eval()

    @property
    def terms(self) -> dict[str, Any]:
        """The terms by name; they add their players when they are first asked for."""
        return {name: self.term(name) for name in TERMS if name in self.scenario.terms}

    def term(self, name: str) -> Any:
        """One of them, a :class:`sdakd_models.terms.base.Term`."""
        if name not in self._terms:
            self._terms[name] = TERMS[name](self.scenario.terms[name], self)
        return self._terms[name]

    @property
    def on_meta(self) -> bool:
        return self.device.type == 'meta'

    def add_player(
        self, name: str, network: nn.Module, side: Literal['g', 'd'], terms: Iterable[str], optim: Mapping | None = None
    ) -> Player:
        """Lets a network learn in the stages where one of ``terms`` is on, in all stages where there is none.

        Args:
            name: Label of its checkpoint, ``net_<name>_<iteration>.pth``.
            network: The network; it is moved to the device.
            side: Whose learning rate applies: the generator's (``g``) or the discriminators' (``d``).
            terms: The terms.
            optim: Its optimizer; default ``train:optim_<side>``.
        """
        net = self.place(network, 'student' if side == 'g' else 'discriminator')
        optim = optim if optim is not None else getattr(self.scenario.train, f'optim_{side}')
        player = Player(name, net, network, side, terms, optim, self.scaler)
        self.players.append(player)
        return player

    def watch(self, who: str, taps: Iterable[str]) -> None:
        """Has the forward passes of ``'student'`` or of a teacher record further activations; see ``Context.features``.

        Raises:
            UserError: A module of that name does not exist.
        """
        known = self.taps.pop(who, None)
        names = {*taps, *(known.names if known else ())}
        if known:
            known.close()
        network = self.student if who == 'student' else self.teachers[who]
        self.taps[who] = FeatureTaps(network, sorted(names))

    def on_device(self, network: nn.Module, role: str, runs: bool = True) -> nn.Module:
        """Moves a network to the device, in the memory layout of its role, compiled if it runs in steps."""
        if self.precisions.channels_last(role):
            network = network.to(memory_format=torch.channels_last)
        network = network.to(self.device)
        if runs and self.scenario.train.compile and not self.on_meta and not self.scenario.file.get('rehearsal'):
            compile_in_place(network)
        return network

    def lower_teachers(self) -> None:
        """Keeps the weights of teachers that run in half precision in it, in place of casting them in every pass."""
        for name in self.fingerprints:
            dtype = DTYPES.get(self.precisions.of(name))
            for module in self.teachers[name].modules():
                if isinstance(self.teachers[name], Foreign) or dtype is None:
                    break  # code of other packages may do with weights what it likes
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(dtype)

    def lower(self, loss: nn.Module) -> nn.Module:
        """Has the backbones of a perceptual loss run in their precision; what the loss does with maps is float32."""
        for name, module in loss.named_children():
            if isinstance(module, VGGFeatureExtractor | PerceptualBackbone):
                # BasicSR's Gram matrix is a view of the map
                views = isinstance(module, VGGFeatureExtractor) and getattr(loss, 'style_weight', 0) > 0
                module, size = self.on_device(module, 'perceptual'), self.scenario.train.micro_batch_size
                module = module if size is None else InParts(module, size)
                # what a teacher that learns along is compared with is what the student is compared with
                self.backbones.append(Lowered(module, self.precisions, views, keeps=bool(self.cotrained)))
                setattr(loss, name, self.backbones[-1])
        return loss

    def place(self, network: nn.Module, role: str) -> nn.Module:
        """Moves a network that learns to the device and wraps it for distributed training, on a CPU as well."""
        network, size = self.on_device(network, role), self.scenario.train.micro_batch_size
        if size is not None:
            network = InParts(network, size)
        if self.on_meta or not self.scenario.file.get('dist'):
            return network
        return distributed(network, self.device, self.scenario.file.get('find_unused_parameters', False))

    def _add_student(self, options: Mapping) -> None:
        scenario = self.scenario
        self.student = student_network(options, None if scenario.resumes else scenario.path)
        self._recompute(self.student)
        self.net_g = self.place(self.student, 'student')
        self.net_g.train()
        self.players.append(Player('g', self.net_g, self.student, 'g', (), scenario.train.optim_g, self.scaler))
        if scenario.train.ema_decay > 0:
            # from options, not by deepcopy: a copy would inherit the hooks of the feature taps
            self.average = freeze(self.on_device(build(options, 'network_g'), 'student', runs=False))
            self.average.load_state_dict(self.student.state_dict())

    def _recompute(self, network: nn.Module) -> None:
        if self.scenario.train.activation_checkpointing and not family_of(network).recompute(network):
            raise UserError(
                'train:activation_checkpointing',
                f'nothing tells the blocks of {type(network).__name__}, or they follow their batches; leave it out, or '
                'write micro_batch_size.',
            )

    def _teacher(self, name: str, entry: TeacherBlock) -> nn.Module:
        """A teacher as the student sees it; one that stays as it is, all students of a run share."""
        common = self.scenario.file.get('common')
        if entry.cotrain is not None:
            return freeze(self.on_device(teacher_network(entry), name))
        if common is None or name not in common.teachers:
            with aside():  # what it draws before its file is read is no concern of those that begin with random weights
                network = teacher_network(entry)
            self.fingerprints[name] = fingerprint(network)
            network = freeze(self.on_device(network, name))
            if common is None:
                return network
            common.teachers[name] = network, self.fingerprints[name]
        network, self.fingerprints[name] = common.teachers[name]
        return network

    def _cotrained(self, name: str) -> CotrainedTeacher:
        shown = self.teachers[name]
        network = deepcopy(shown).requires_grad_(True).train()
        self._recompute(network)
        player = self.add_player('teacher' if name == 'teacher' else f'teacher_{name}', network, 'g', ())
        shown.load_state_dict(player.bare.state_dict())  # from nothing, every process has drawn another one
        return CotrainedTeacher(name, player, shown, self.scenario.teachers[name].cotrain.metric)

    def _discriminator(self, entry: DiscriminatorBlock) -> Discriminator:
        network = build(entry.network, entry.key('network'))
        if entry.weights and not (entry.name == 'student' and self.scenario.resumes):
            where = entry.key('weights')
            load_into(network, read_state(entry.weights, entry.param_key, where), entry.weights, where)
        network, player = self.on_device(network, 'discriminator'), None
        if self.scenario.train.activation_checkpointing:
            family_of(network).recompute(network)  # where it has blocks
        if entry.learns:
            name = 'd' if entry.name == 'student' else f'd_{entry.name}'
            player = self.add_player(name, network, 'd', (entry.term,))
        else:
            freeze(network)
        loss = None if self.on_meta else self.scenario.terms[entry.term].build(self.device)
        return Discriminator(entry.name, entry, loss, network, player)

    def _select(self, discriminator: Discriminator) -> None:
        """Gives a discriminator its channel masks, where it is activated selectively."""
        options = discriminator.facts.selective
        teacher = self.discriminators.get(options.against) if options is not None else None
        if teacher is None or discriminator.player is None:  # the checks say why
            return
        masks = ChannelMasks(
            discriminator.bare, options.layers, options.threshold, discriminator.facts.key('selective:layers')
        )
        optim = {'type': 'Adam', 'betas': [0.9, 0.999]}  # published
        name, terms = f'{discriminator.player.name}_masks', (discriminator.term,)
        player = Player(name, masks, masks, 'd', terms, optim, self.scaler, options.lr)
        self.players.append(player)
        discriminator.selection = Selection(discriminator, masks, player, teacher)


def student_network(options: Mapping, path: Mapping | None) -> nn.Module:
    """The student on the CPU, from nothing or from the file ``path:pretrain_network_g``."""
    network = build(options, 'network_g')
    initialise(network)
    if path and path.get('pretrain_network_g'):
        where, file = 'path:pretrain_network_g', path['pretrain_network_g']
        load_into(network, read_state(file, path.get('param_key_g'), where), file, where)
    return network


def teacher_network(teacher: TeacherBlock) -> nn.Module:
    """A teacher with its weights, on the CPU; with ``shuffle``, a placebo of it.

    Raises:
        UserError: Its file cannot be read, or does not fit the architecture given.
    """
    network = _trained(teacher)
    if teacher.shuffle is not None:
        shuffle(network, teacher.shuffle)
    return network


def _trained(teacher: TeacherBlock) -> nn.Module:
    if teacher.weights is None:
        if teacher.network is None or teacher.cotrain is None:
            raise teacher.error(
                'the key is missing; name the trained network (a teacher that learns along, with cotrain, may start '
                'from nothing: then write its network).',
                'weights',
            )
        network = build(teacher.network, teacher.key('network'))
        initialise(network)
        return network
    state = read_state(teacher.weights, teacher.param_key, teacher.key('weights'))
    where = teacher.key('weights')
    if teacher.network is not None:
        network = build(teacher.network, teacher.key('network'))
    elif (options := infer_network(state)) is not None:
        check_channels(options, teacher.weights, where)
        network = build_told(options, state, where, teacher.weights)
    elif (network := open_foreign(state, teacher.weights, where)) is not None:
        return network
    else:
        reason = untold(state) or f'{", ".join(sorted(state)[:3])}, ...'
        raise UserError(
            f'{where}: the architecture cannot be told from the keys of {teacher.weights} ({reason}): write it as '
            f'{teacher.key("network")}, with the keys of network_g{needs_spandrel()}.'
        )
    load_into(network, state, teacher.weights, where)
    return network


def distributed(network: nn.Module, device: torch.device, unused: bool = False) -> DistributedDataParallel:
    """Wraps a network for distributed training; batch normalisation is by the images of all processes from then on."""
    share_statistics(network)
    # of kernels of one pixel, whose memory is the same in either order
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    devices = [torch.cuda.current_device()] if device.type == 'cuda' else None
    return DistributedDataParallel(
        network, device_ids=devices, find_unused_parameters=unused, gradient_as_bucket_view=True
    )
