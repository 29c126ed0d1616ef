"""The training model: stages, players and terms on BasicSR's loop. It knows no method by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Literal

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdakd.compat import UserError
from sdakd_arch.inference.tiling import run_tiled
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.weights import describe, fingerprint, infer_network, load_into, read_weights
from sdakd_arch.width import build, initialise, scale_of
from sdakd_data.answers import Answer
from sdakd_data.cache_filling import fill
from sdakd_data.cached_dataset import answers_in
from sdakd_models.checkpoints import Checkpoints
from sdakd_models.context_error import check_context
from sdakd_models.cotraining import CotrainedTeacher
from sdakd_models.options import Discriminator, gan_term, read_teachers, read_train
from sdakd_models.players import Adversary, Player, freeze
from sdakd_models.shares import Shares, own_terms
from sdakd_models.stages import Moment, StageMark
from sdakd_models.terms import TERMS, Context, term_options
from sdakd_models.wiring import (
    active_terms,
    border_of,
    crop_of,
    margin_of,
    needed_teachers,
    shares_of,
    teacher_network,
    used_discriminators,
)


@MODEL_REGISTRY.register()
class SDAKDModel(Checkpoints, SRModel):
    """Distils a super-resolution GAN into a narrow student in stages, on paired data.

    The option file adds ``teacher:``, ``train:stages:`` and, where wanted, ``discriminators:`` to BasicSR's keys; see
    ``docs/options.md``. Checkpoints are BasicSR's: ``net_g_<iteration>.pth`` with ``params`` and ``params_ema``.
    Without ``network_g`` only discriminators are trained, on the teacher's images.

    Raises:
        UserError: The options contradict themselves or the files they name.
    """

    has_borders = True  # training images are crops, whose borders teachers answer to with artefacts of padding
    discriminators_first = False  # Real-ESRGAN's order: the generator is updated before its discriminator

    def __init__(self, opt: Mapping) -> None:
        BaseModel.__init__(self, opt)  # not SRModel's constructor: players build what it would
        self.path = opt.get('path') or {}
        if opt.get('network_g'):
            network = build(opt['network_g'], 'network_g')
            initialise(network)
            self.net_g = self.place(network)
            self.bare_student = self.get_bare_model(self.net_g)
            self.scale = opt.get('scale') or scale_of(build(opt['network_g'], 'network_g'), 'network_g')
            self._log_network('student', self.bare_student, opt['network_g'])
            weights = self.path.get('pretrain_network_g')
            if weights:
                state = read_weights(weights, self.path.get('param_key_g'), 'path:pretrain_network_g')
                load_into(self.bare_student, state, weights, 'path:pretrain_network_g')
        if self.is_train:
            self.init_training_settings()

    # ------------------------------------------------------------------------------------------------- construction

    def init_training_settings(self) -> None:
        """Builds the players and terms that some stage uses."""
        opt = self.opt
        self.train_options = read_train(opt, term_options())
        self.plan = self.train_options.plan()
        self.last_iter = 0
        self.players: list[Player] = []
        self.taps: dict[str, FeatureTaps] = {}
        self.lq_size = 32
        self.answers: dict[str, Answer] = {}  # of teachers to the current batch, where they are known without running

        self.student: Player | None = None
        self.ema_decay = self.train_options.ema_decay
        if opt.get('network_g'):
            self.net_g.train()
            self.student = Player('g', self.net_g, self.bare_student, 'g', (), self.train_options.optim_g)
            self.players.append(self.student)
            self.optimizers.append(self.student.optimizer)
            if self.ema_decay > 0:
                # from options, not by deepcopy: a copy would inherit the hooks of the feature taps
                self.net_g_ema = build(opt['network_g'], 'network_g').to(self.device)
                self.net_g_ema.load_state_dict(self.bare_student.state_dict())
                freeze(self.net_g_ema)

        names = {name for stage in self.plan.stages for name in active_terms(stage, opt)}
        used = used_discriminators(opt, names)
        self.teachers: dict[str, nn.Module] = {}
        for name in needed_teachers(opt, names, used):
            self.teachers[name] = freeze(self.on_device(teacher_network(opt, name)))
            self._log_network('teacher' if name == 'teacher' else f'teacher {name}', self.teachers[name])
        self.fingerprints = {name: fingerprint(teacher) for name, teacher in self.teachers.items()}
        self.cotrained = [self._cotrained(name) for name in self.teachers if read_teachers(opt)[name].replace_by]
        self.adversaries = {name: self._adversary(name, entry) for name, entry in used.items()}
        self.terms = {name: TERMS[name](opt['train'][TERMS[name].option], self) for name in TERMS if name in names}
        crop = crop_of(opt) // opt.get('scale', 1)
        self.teacher_margin, self.border = margin_of(opt, crop), border_of(opt, crop, self.teachers)
        self.shares: Shares | None = None
        if self.student is not None:
            own, every = own_terms(used, opt['train']), self.train_options.share_freq
            self.shares = Shares(self, shares_of(opt, names), own, every)
        if opt['rank'] == 0 and not self.path.get('resume_state') and self.teachers and self.has_borders:
            check_context(self)
        fill(opt['datasets'].get('train') or {}, self.teachers, self.fingerprints, opt['rank'] == 0)

    def add_player(
        self, name: str, network: nn.Module, side: Literal['g', 'd'], terms: Iterable[str], optim: Mapping | None = None
    ) -> Player:
        """Lets a network learn in the stages where one of ``terms`` is on; returns the player."""
        net = self.place(network)
        optim = optim if optim is not None else getattr(self.train_options, f'optim_{side}')
        player = Player(name, net, self.get_bare_model(net), side, terms, optim)
        self.players.append(player)
        self.optimizers.append(player.optimizer)
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
        self.taps[who] = FeatureTaps(self.bare_student if who == 'student' else self.teachers[who], sorted(names))

    def on_device(self, network: nn.Module) -> nn.Module:
        """Moves a network to the device, in the memory layout that units for bfloat16 want where they are used."""
        if (self.opt.get('train') or {}).get('precision') == 'bf16':
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.device)

    def run(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """A forward pass in the precision of ``train:precision``; the result is float32, ``(N, C, H, W)``."""
        with self.autocast():
            return network(self.as_input(image)).float()

    def generate(self, network: nn.Module) -> torch.Tensor:
        """The image that a generator makes of the current input, ``(N, 3, H, W)`` in [0, 1], in the same precision."""
        return self.run(network, self.lq)

    def answer(self, who: str, with_features: bool) -> Answer | None:
        """What a teacher makes of the current batch, where it need not be run for it."""
        known = self.answers.get(who)
        if known is not None and with_features and who in self.taps:
            return known if known.features.keys() >= set(self.taps[who].names) else None
        return known

    def as_input(self, image: torch.Tensor) -> torch.Tensor:
        """What networks are given for an image in [0, 1]: the same, as Real-ESRGAN's take it."""
        return image

    def autocast(self) -> torch.autocast:
        """The precision of ``train:precision`` for forward passes."""
        bf16 = self.is_train and self.train_options.precision == 'bf16'
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def place(self, network: nn.Module) -> nn.Module:
        """Moves a network that learns to the device and wraps it for distributed training, on a CPU as well."""
        network = self.on_device(network)
        if not self.opt['dist']:
            return network
        devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
        unused = self.opt.get('find_unused_parameters', False)
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=unused)

    def _adversary(self, name: str, entry: Discriminator) -> Adversary:
        where = 'network_d' if name == 'student' else f'discriminators:{name}:network'
        network = self.on_device(build(entry.network, where))
        if entry.weights:
            key = 'path:pretrain_network_d' if name == 'student' else f'discriminators:{name}:weights'
            load_into(network, read_weights(entry.weights, entry.param_key, key), entry.weights, key)
        gan_opt = entry.gan_opt or self.opt['train']['gan_opt']
        player = None
        if entry.learns:
            player = self.add_player('d' if name == 'student' else f'd_{name}', network, 'd', (gan_term(name),))
        else:
            freeze(network)
        self._log_network(f'discriminator {name}', network, entry.network)
        return Adversary(name, entry, gan_opt, network, player)

    def _cotrained(self, name: str) -> CotrainedTeacher:
        shown = self.teachers[name]
        network = deepcopy(shown).requires_grad_(True).train()
        player = self.add_player('teacher' if name == 'teacher' else f'teacher_{name}', network, 'g', ())
        shown.load_state_dict(player.bare.state_dict())  # from nothing, every process has drawn another one
        del self.fingerprints[name]
        return CotrainedTeacher(name, player, shown, read_teachers(self.opt)[name].replace_by)

    def _log_network(self, role: str, network: nn.Module, options: Mapping | None = None) -> None:
        options = options or infer_network(network.state_dict())
        kind = describe(options) if options else type(network).__name__
        get_root_logger().info(f'{role}: {kind}, {sum(p.numel() for p in network.parameters()):,d} parameters')

    # ------------------------------------------------------------------------------------------------------ training

    def feed_data(self, data: Mapping) -> None:
        """Takes a batch: ``lq`` and ``gt`` in [0, 1] and, where teachers have a cache, their answers."""
        super().feed_data(data)
        self.answers = answers_in(data, self.device)

    def target(self, term: str) -> torch.Tensor:
        """The ground truth as a term wants it; data sets without sharpening have one for all."""
        return self.gt

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Sets every player's rate from the stage; BasicSR's schedulers and its own warm-up are not used."""
        for player in self.players:
            player.set_learning_rate(self.plan.learning_rate(current_iter, player.side))

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: the generators' side and every discriminator that learns in this stage."""
        moment = self.plan.at(current_iter)
        stage = moment.stage
        if moment.step == 1:
            self._enter(moment)
        names = active_terms(stage, self.opt)
        terms = [self.terms[name] for name in names if name in self.terms]
        adversaries = [adversary for adversary in self.adversaries.values() if adversary.term in names]
        context = Context(self, with_features=any(term.needs_features for term in terms))
        learning = self.cotrained if stage.lr_g is not None else ()
        own = {teacher.name: Context(self, False, author=teacher.player.net) for teacher in learning}
        log: dict[str, torch.Tensor] = {}

        def generators() -> None:
            found = {name: self.terms[name](context) for name in names if name in self.terms}
            found |= {adversary.term: adversary.student_loss(context) for adversary in adversaries}
            found = {term: values for term, values in found.items() if values}
            if found:
                self.shares.look(moment, current_iter, {term: sum(values.values()) for term, values in found.items()})
            losses: dict[str, torch.Tensor] = {}
            for term, values in found.items():
                losses |= {f'l_g_{name}': self.weighted(term, value) for name, value in values.items()}
            if losses:
                sum(losses.values()).backward()
            log.update(losses)
            for teacher in learning:
                log.update(teacher.learn(own[teacher.name], self, names, adversaries))
            for player in self.players:
                if player.side == 'g' and player.learns_in(stage):
                    player.step(stage.grad_clip)

        def discriminators() -> None:
            for adversary in adversaries:
                log.update(adversary.learn(context, own.get('teacher'), self._r1_weight(current_iter)))
                if adversary.player is not None:
                    adversary.player.step(stage.grad_clip)
                if current_iter % self.opt['logger']['print_freq'] == 0:
                    log.update(adversary.diagnose(context))

        for side in (discriminators, generators) if self.discriminators_first else (generators, discriminators):
            side()
        if stage.lr_g is not None:
            if self.ema_decay > 0:
                # with the bare decay, a short run would be validated on its initial weights
                self.model_ema(decay=min(self.ema_decay, (1 + current_iter) / (10 + current_iter)))
            self.output = context.student.detach()
        self.last_iter = current_iter
        self._report(moment, current_iter, log)

    def weighted(self, term: str, value: torch.Tensor) -> torch.Tensor:
        """A term's scalar with the weight that its share has been given; as it is where it has a weight of its own."""
        weight = self.shares.weight(term)
        return value if weight == 1 else weight * value

    def _r1_weight(self, current_iter: int) -> float:
        """Of the lazy R1 penalty in this iteration: all of an interval's at once (StyleGAN2, arXiv 1912.04958)."""
        every = self.train_options.net_d_reg_every
        return self.train_options.r1_reg_weight / 2 * every if current_iter % every == 0 else 0.0

    def _enter(self, moment: Moment) -> None:
        terms = ', '.join(active_terms(moment.stage, self.opt))
        get_root_logger().info(
            f'Stage {moment.index + 1} of {len(self.plan.stages)}, {moment.name}: '
            f'{moment.stage.iters:,d} iterations with {terms}.'
        )
        if moment.stage.lr_g is not None and self.border and self._leaves_border(active_terms(moment.stage, self.opt)):
            get_root_logger().warning(
                f'No term of the stage {moment.name} looks at the border of crops, so that the student does not learn '
                'what to do at the border of an image: add pixel, use pool_reuse or cache, or write teacher_margin: 0.'
            )
        if moment.stage.reset_optimizers:
            for player in self.players:
                player.forget()

    def _leaves_border(self, names: Iterable[str]) -> bool:
        """Whether all these terms compare with a teacher."""
        own = {name for name in self.terms if self.terms[name].teachers(self.opt['train'][f'{name}_opt'])}
        return set(names) <= own | {adversary.term for adversary in self.adversaries.values() if adversary.compares}

    def _report(self, moment: Moment, current_iter: int, log: Mapping[str, torch.Tensor]) -> None:
        """Averages the logged values over processes, with one synchronisation, and stops on NaN or infinity."""
        values = torch.stack([value.detach().float().mean() for value in log.values()])
        if self.opt['dist']:
            torch.distributed.all_reduce(values)
            values /= self.opt['world_size']
        values = OrderedDict(zip(log, values.tolist(), strict=True))
        bad = [name for name, value in values.items() if value != value or abs(value) == float('inf')]
        if bad:
            side = 'g' if bad[0].startswith(('l_g_', 'l_t_')) else 'd'
            raise UserError(
                f'the loss {bad[0]} became {values[bad[0]]} at iteration {current_iter:,d} (stage {moment.name}, step '
                f'{moment.step:,d}): lower train:stages:{moment.name}:lr_{side} or '
                f'set grad_clip there, and continue from the last checkpoint in {self.path.get("models")} '
                f'with --auto_resume.'
            )
        shares = self.shares.log() if self.shares is not None else {}
        self.log_dict = OrderedDict(stage=StageMark(self.plan, moment), **values, **shares)

    # ----------------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def upscale(self, network: nn.Module) -> torch.Tensor:
        """What a generator makes of ``self.lq`` in validation; ``(N, 3, H, W)`` in [0, 1], in tiles where wanted."""
        val = self.opt.get('val') or {}
        return run_tiled(network, self.lq, self.scale, val.get('tile') or 0, val.get('tile_pad', 10))

    def test(self) -> None:
        """Runs the averaged student on ``self.lq``, in tiles where ``val:tile`` says so."""
        network = getattr(self, 'net_g_ema', self.bare_student)
        network.eval()
        self.output = self.upscale(network)
        if network is self.bare_student:
            network.train(self.opt['is_train'])

    def validation(self, dataloader, current_iter, tb_logger, save_img=False) -> None:
        """BasicSR's, and after the first set the choice whether a teacher that learns is shown to the student."""
        super().validation(dataloader, current_iter, tb_logger, save_img)
        first = next((phase for phase in self.opt['datasets'] if phase.startswith('val')), None)
        for teacher in self.cotrained if self.is_train else ():
            if dataloader.dataset.opt['name'] != self.opt['datasets'][first]['name']:
                continue
            if self.opt['rank'] == 0:
                teacher.consider(self, dataloader, current_iter)
            if self.opt['dist']:
                for tensor in teacher.shown.state_dict().values():
                    torch.distributed.broadcast(tensor, 0)
            self.save_again(teacher, current_iter)

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """BasicSR's validation, with the first images of every set in TensorBoard (``val:tb_images``, default 3)."""
        self._images = None
        if tb_logger is not None:
            name = dataloader.dataset.opt['name']
            self._images = (tb_logger, name, current_iter, iter(range(self.opt['val'].get('tb_images', 3))))
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        self._images = None

    def get_current_visuals(self) -> OrderedDict:
        """The current images on the CPU: ``lq``, ``result`` and, where there is one, ``gt``."""
        visuals = super().get_current_visuals()
        if getattr(self, '_images', None) is not None:
            tb_logger, name, current_iter, numbers = self._images
            number = next(numbers, None)
            if number is not None:
                for kind, image in visuals.items():
                    rgb = tensor2img([image], rgb2bgr=False)
                    tb_logger.add_image(f'{name}/{number}/{kind}', rgb, current_iter, dataformats='HWC')
        return visuals
