"""The training model: stages, players and terms on BasicSR's loop. It knows no method by name."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from sdakd.progress import Progress
from sdakd_arch.foreign import Foreign
from sdakd_arch.taps import recording
from sdakd_arch.weights import describe, infer_network
from sdakd_arch.width import build, scale_of
from sdakd_data.answers import Answer
from sdakd_data.cache_filling import fill
from sdakd_data.cached_dataset import answers_in
from sdakd_data.pool import ReusingPool
from sdakd_data.randomness import aside, seed_all
from sdakd_models.cast import Cast, distributed, student_network
from sdakd_models.checkpoints import BATCHES, HELD_BACK, NETWORKS, PROCESSES, Checkpoints
from sdakd_models.clock import Clock
from sdakd_models.common import Common
from sdakd_models.context import Context
from sdakd_models.context_error import check_context
from sdakd_models.finite import blame
from sdakd_models.kept import Kept
from sdakd_models.loop import Loop
from sdakd_models.parts import in_parts
from sdakd_models.precision import eagerly
from sdakd_models.processes import meet
from sdakd_models.reader import forget_states
from sdakd_models.scenario import Scenario
from sdakd_models.selection import on_held_out
from sdakd_models.shares import Shares
from sdakd_models.stages import Moment, StageMark
from sdakd_models.validation import Validation


@MODEL_REGISTRY.register()
class SDAKDModel(Checkpoints, Validation, SRModel):
    """Distils a super-resolution GAN into a narrow student in stages, on paired data.

    The option file adds ``teacher:``, ``train:stages:`` and, where wanted, ``discriminators:`` to BasicSR's keys; see
    ``docs/options.md``. Checkpoints are BasicSR's: ``net_g_<iteration>.pth`` with ``params`` and ``params_ema``.
    Without ``network_g`` only discriminators are trained, on the teacher's images.

    Raises:
        UserError: The options contradict themselves or the files they name.
    """

    has_borders = True  # training images are crops, whose borders teachers answer to with artefacts of padding
    discriminators_first = False  # Real-ESRGAN's order: the generator is updated before its discriminator
    unread: Callable[[], None] | None = None  # the end of the report on the last step, where it waits
    at_work = ''  # the term that a step is computing, for the sentence of a rehearsal
    batch = ('lq', 'gt', 'answers', 'sources', 'held_out')  # what feed_data() sets that a step looks at
    held_out: Mapping | None = None  # the images of the current iteration that are held out, as the loader gives them
    aside = False  # whether these are at work

    def __init__(self, opt: Mapping) -> None:
        BaseModel.__init__(self, opt)  # not SRModel's constructor: the cast is what it would build
        self.path = opt.get('path') or {}
        self.loop: Loop | None = None  # BasicSR's, where it trains this model
        self.told: set[str] = set()  # metrics of whose failure the log has told
        if self.is_train:
            self.init_training_settings()
        elif opt.get('network_g'):
            self.bare_student = student_network(opt['network_g'], self.path).to(self.device)
            self.net_g = distributed(self.bare_student, self.device) if opt['dist'] else self.bare_student
            self._log_network('student', self.bare_student, opt['network_g'])
        if opt.get('network_g'):
            self.scale = opt.get('scale') or scale_of(build(opt['network_g'], 'network_g'), 'network_g')

    # ------------------------------------------------------------------------------------------------- construction

    def init_training_settings(self) -> None:
        """Builds the players and terms that some stage uses."""
        self.common: Common | None = self.opt.get('common')  # where several students are trained together
        self.feeder: SDAKDModel = self  # who takes the batches and has the pool
        if not self.opt.get('rehearsal'):
            self._seed(NETWORKS)
        self.scenario = Scenario.read(self.opt)
        self.train_options, self.plan = self.scenario.train, self.scenario.plan
        self.micro_batch = self.train_options.micro_batch_size
        self.teacher_margin, self.border = self.scenario.margin, self.scenario.border
        self.cast = Cast(self.scenario, self.device)
        self.players, self.taps, self.terms = self.cast.players, self.cast.taps, self.cast.terms
        self.teachers, self.discriminators, self.cotrained = (
            self.cast.teachers,
            self.cast.discriminators,
            self.cast.cotrained,
        )
        self.optimizers = [player.optimizer for player in self.players]
        self.cast.precisions.begin()
        self.last_iter = 0
        frequencies = {'saving': self.opt['logger']['save_checkpoint_freq'], 'validation': self.scenario.val_freq}
        self.clock = Clock(self.plan, {kind: every for kind, every in frequencies.items() if every})
        self.kept = Kept(self.scenario.logger.keep_last, self.plan.ends)
        self.stops = False  # whether some process was asked to stop, as all of them know since the last step
        # a value that is read makes the host wait for a GPU: there it is read once the next batch has been loaded
        self.reads_late = self.device.type == 'cuda' and not (self.opt['dist'] or self.opt.get('rehearsal'))
        self.validated = 0  # the last iteration with a validation of all sets
        self.answers: dict[str, Answer] = {}  # of teachers to the current batch, where they are known without running
        self.sources: Sequence[str] = ()  # of the images that were last taken
        self.pool: ReusingPool | None = None
        if self.train_options.pool_reuse > 1:
            size, reuse = self.opt['queue_size'], self.train_options.pool_reuse
            crop, scale = self.scenario.input_crop, self.scenario.scale
            self.pool = ReusingPool(size, reuse, crop, self.teacher_margin, scale, self._ask)
        self.shares: Shares | None = None
        if self.cast.student is not None:
            self.net_g, self.bare_student = self.cast.net_g, self.cast.student
            if self.cast.average is not None:
                self.net_g_ema = self.cast.average
                # walking through the modules takes longer than averaging
                self.averaged = [list(net.parameters()) for net in (self.cast.average, self.bare_student)]
            own, every = self.scenario.own_terms, self.train_options.share_freq
            processes = self.opt['world_size'] if self.opt['dist'] else 1
            self.shares = Shares(self.bare_student, self.scenario.shares, own, every, processes, self.cast.scaler)
        self._log_cast()
        if not self.opt.get('rehearsal'):
            self._begin()

    def _begin(self) -> None:
        """What a run does before its first step, once everyone is there."""
        if Loop.latest is not None:
            self.loop, Loop.latest.model = Loop.latest, self
        main = self.opt['rank'] == 0
        for fact in ('threads', 'precision', 'room'):
            if fact in self.opt:
                get_root_logger().info(self.opt[fact])
        first = self.common is None or not self.common.members
        if main and first and not self.scenario.resumes and self.teachers and self.has_borders:
            with Progress("teachers' answers to crops, against those in context"):
                check_context(self.cast, self.run)
        with eagerly():
            fill(self.scenario.datasets.get('train') or {}, self.teachers, self.cast.fingerprints, main)
        if self.common is None:  # else other students' caches may still be filled, in float32
            self.cast.lower_teachers()
        meet()
        forget_states()
        self._seed(PROCESSES, 0)  # networks of other sizes have drawn other numbers

    def _seed(self, *purpose: int) -> None:
        """Has the random numbers that follow depend on seed and process alone."""
        seed_all(self.opt['manual_seed'], *purpose, self.opt['rank'], device=self.device)

    def _log_cast(self) -> None:
        if self.cast.student is not None:
            self._log_network('student', self.cast.student, self.scenario.network_g)
        for name, teacher in self.teachers.items():
            self._log_network('teacher' if name == 'teacher' else f'teacher {name}', teacher)
        for name, discriminator in self.discriminators.items():
            self._log_network(f'discriminator {name}', discriminator.bare, discriminator.facts.network)
        for name, term in self.terms.items():
            if description := getattr(term.loss, 'description', ''):
                get_root_logger().info(f'{name}: {description}')

    def _log_network(self, role: str, network: nn.Module, options: Mapping | None = None) -> None:
        options = options or infer_network(network.state_dict())
        own = network.describe() if isinstance(network, Foreign) else type(network).__name__
        kind = describe(options) if options else own
        get_root_logger().info(f'{role}: {kind}, {sum(p.numel() for p in network.parameters()):,d} parameters')

    # ------------------------------------------------------------------------------------------------------ training

    def run(self, network: nn.Module, image: torch.Tensor, role: str) -> torch.Tensor:
        """A forward pass in the precision of a role; the result is float32 and contiguous, ``(N, C, H, W)``."""
        with self.autocast(role):
            return in_parts(network, self.micro_batch, self.as_input(image)).float().contiguous()

    def generate(self, network: nn.Module, role: str) -> torch.Tensor:
        """The image that a generator makes of the current input, ``(N, 3, H, W)`` in [0, 1], in the same precision."""
        return self.run(network, self.lq, role)

    def answer(self, who: str, with_features: bool, with_image: bool = True) -> Answer | None:
        """What a teacher makes of the current batch, where this model need not run it for that.

        It comes from the pool, from a cache, or from what several students have in common.
        """
        if self.aside or any(teacher.name == who for teacher in self.cotrained):
            return None
        if self.pool is not None:
            return self.pool.answers(who, with_features, with_image)
        known = self.answers.get(who)
        if known is not None and with_features and who in self.taps:
            known = known if known.features.keys() >= set(self.taps[who].names) else None
        if known is None and self.common is not None:
            return self.common.answer(self, who, with_features, with_image)
        return known

    @torch.no_grad()
    def _ask(self, who: str, lq: torch.Tensor, with_features: bool, with_image: bool) -> Answer:
        taps, image = self.taps.get(who) if with_features else None, None
        usual = len(lq) == self.opt['datasets']['train']['batch_size_per_gpu']
        around = recording(taps, with_image or self.micro_batch is not None)
        with around, nullcontext() if usual else eagerly():
            image = self.run(self.teachers[who], lq, who)
        return Answer(image if with_image else None, taps.pop() if taps is not None else {})

    def as_input(self, image: torch.Tensor) -> torch.Tensor:
        """What networks are given for an image in [0, 1]: the same, as Real-ESRGAN's take it."""
        return image

    def autocast(self, role: str) -> AbstractContextManager:
        """The precision of the forward passes of a role, see :class:`sdakd_models.precision.Precisions`."""
        return self.cast.precisions.autocast(role) if self.is_train else nullcontext()

    @classmethod
    def noise_batch(cls, scenario: Scenario, number: int) -> dict[str, torch.Tensor]:
        """A batch of random images of a run's sizes, for its rehearsal."""
        crop, side = scenario.crop, scenario.input_crop
        return {'lq': torch.rand(number, 3, side, side), 'gt': torch.rand(number, 3, crop, crop)}

    def feed_data(self, data: Mapping) -> None:
        """Takes a batch: ``lq`` and ``gt`` in [0, 1] and, where teachers have a cache, their answers."""
        self.settle()
        for backbone in self.cast.backbones if self.is_train else ():
            backbone.forget()
        with self.drawing() if self.is_train and not self.opt.get('rehearsal') else nullcontext():
            self._next(data)

    def drawing(self) -> AbstractContextManager:
        """What a batch draws, its degradation, crops and noise, depends on seed and iteration, and on no term."""
        purpose = HELD_BACK if self.aside else BATCHES
        return aside(self.opt['manual_seed'], purpose, self.last_iter + 1, self.opt['rank'], device=self.device)

    def _next(self, data: Mapping) -> None:
        data = dict(data)
        self.held_out = data.pop('held_out', None)
        pooled, batch = self.pool is not None and self.is_train, len(next(iter(data.values())))
        if not pooled or self.pool.wants(batch):
            self.take(data)
            if pooled:
                self.pool.add(self.lq, self.gt)
        if pooled:
            self.draw(batch)

    def take(self, data: Mapping) -> None:
        """Makes a batch of the loader the current one; with a pool, its pairs are larger than crops."""
        super().feed_data(data)
        self.answers = answers_in(data, self.device)
        self.sources = data.get('gt_path') or data.get('lq_path') or ()

    def draw(self, batch: int) -> None:
        """Takes a batch from the pool of reused pairs as the current one."""
        # mirrored feature maps are not those of the mirrored input: the filters are oriented
        names = self.scenario.active[self.plan.at(self.last_iter + 1).name]
        compared = any(self.terms[name].needs_features for name in names if name in self.terms)
        flips = self.opt['datasets']['train'].get('use_hflip', False) and self.train_options.pool_flips and not compared
        self.lq, self.gt = self.pool.draw(batch, flips)

    def target(self, term: str) -> torch.Tensor:
        """The ground truth as a term wants it; data sets without sharpening have one for all."""
        return self.gt

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Begins an iteration: every player's rate is its stage's; BasicSR's schedulers and warm-up are not used.

        Raises:
            Stopped: The run was asked to stop, and is saved.
        """
        if self.loop is not None:
            self.loop.between()
        for player in self.players:
            player.set_learning_rate(self.plan.learning_rate(current_iter, player.side, player.lr))

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: the generators' side and every discriminator that learns in this stage."""
        moment = self.plan.at(current_iter)
        stage, names = moment.stage, self.scenario.active[moment.name]
        if moment.step == 1:
            self._enter(moment)
        terms = {name: self.terms[name] for name in names if name in self.terms}
        discriminators = [each for each in self.discriminators.values() if each.term in names]
        context = Context(
            self,
            with_features=any(term.needs_features for term in terms.values()),
            shown=self.scenario.shown(moment.name),
        )
        learning = self.cotrained if stage.lr_g is not None else ()
        contexts = {teacher.name: Context(self, False, author=teacher.player.net) for teacher in learning}
        log: dict[str, torch.Tensor] = {}

        def train_generators() -> None:
            found: dict[str, dict[str, torch.Tensor]] = {}
            for name, term in terms.items():
                self.at_work = name
                found[name] = dict(term(context))  # a forgotten return fails here
            for each in discriminators:
                self.at_work = each.term
                found[each.term] = each.student_loss(context)
            self.at_work = ''
            found = {term: values for term, values in found.items() if values}
            if found:
                self.shares.look(moment, current_iter, {term: sum(values.values()) for term, values in found.items()})
            losses: dict[str, torch.Tensor] = {}
            for term, values in found.items():
                losses |= {f'l_g_{name}': self.weighted(term, value) for name, value in values.items()}
            if losses:
                self.cast.scaler.scale(sum(losses.values())).backward()
            log.update(losses)
            without_teacher = {name: term for name, term in terms.items() if not term.needs_teacher}
            for teacher in learning:
                log.update(teacher.learn(contexts[teacher.name], without_teacher, discriminators, self.weighted))
            for player in self.players:
                if player.side == 'g' and player.learns_in(stage):
                    player.step(stage.grad_clip)

        def train_discriminators() -> None:
            for each in discriminators:
                self.at_work = each.term
                log.update(each.learn(context, contexts.get('teacher'), self._r1_weight(current_iter)))
                if each.player is not None:
                    each.player.step(stage.grad_clip)
                if each.selection is not None:
                    with on_held_out(self):
                        log.update(each.selection.learn(Context(self, False, author=self.bare_student), moment))
                if current_iter % self.opt['logger']['print_freq'] == 0:
                    log.update(each.diagnose(context))
            self.at_work = ''

        sides = (train_generators, train_discriminators)
        for train in reversed(sides) if self.discriminators_first else sides:
            train()
        if self.cast.scaler.is_enabled():
            self.cast.scaler.update()
        if stage.lr_g is not None:
            if self.cast.average is not None:
                # with the bare decay, a short run would be validated on its initial weights
                self.model_ema(decay=min(self.train_options.ema_decay, (1 + current_iter) / (10 + current_iter)))
            self.output = context.student.detach()
        self.last_iter = current_iter
        self._report(moment, current_iter, log, {'student': context, **contexts})
        self.clock.lap(current_iter)

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """BasicSR's average of the student's parameters, in the same bits, by two operators over all of them."""
        averages, parameters = self.averaged
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, parameters, alpha=1 - decay)

    def weighted(self, term: str, value: torch.Tensor) -> torch.Tensor:
        """A term's scalar with the weight that its share has been given; as it is where it has a weight of its own."""
        weight = self.shares.weight(term)
        return value if weight == 1 else weight * value

    def _r1_weight(self, current_iter: int) -> float:
        """Of the lazy R1 penalty in this iteration: all of an interval's at once (StyleGAN2, arXiv 1912.04958)."""
        every = self.train_options.net_d_reg_every
        return self.train_options.r1_reg_weight / 2 * every if current_iter % every == 0 else 0.0

    def _enter(self, moment: Moment) -> None:
        get_root_logger().info(
            f'Stage {moment.index + 1} of {len(self.plan.stages)}, {moment.name}: '
            f'{moment.stage.iters:,d} iterations with {", ".join(self.scenario.active[moment.name])}.'
        )
        if moment.stage.lr_g is not None and self.border and self.scenario.leaves_border(moment.name):
            get_root_logger().warning(
                f'No term of the stage {moment.name} looks at the border of crops, so that the student does not learn '
                'what to do at the border of an image: add pixel, use pool_reuse or cache, or write teacher_margin: 0.'
            )
        if moment.stage.reset_optimizers:
            for player in self.players:
                player.forget()

    def _report(
        self,
        moment: Moment,
        current_iter: int,
        log: Mapping[str, torch.Tensor],
        contexts: Mapping[str, Context],
    ) -> None:
        """Averages the logged values over processes, and has them read by :meth:`settle`."""
        values = torch.stack([value.detach().float().mean() for value in log.values()])
        if self.opt['dist']:
            wanted = self.loop is not None and self.loop.wanted is not None
            values = torch.cat([values, values.new_tensor([float(wanted)])])
            torch.distributed.all_reduce(values)
            self.stops = values[-1] > 0
            values = values[:-1] / self.opt['world_size']
        self.unread = partial(self._read, moment, current_iter, values, log, contexts)
        if not self.reads_late:
            self.settle()

    def settle(self) -> None:
        """Reads the logged values of the last step, with one synchronisation, unless that is done.

        What would change the step's batch, be saved or be logged comes after it.

        Raises:
            UserError: One of them is NaN or infinite.
        """
        unread, self.unread = self.unread, None
        if unread is not None:
            unread()

    def _read(
        self,
        moment: Moment,
        current_iter: int,
        values: torch.Tensor,
        log: Mapping[str, torch.Tensor],
        contexts: Mapping[str, Context],
    ) -> None:
        found = OrderedDict(zip(log, values.tolist(), strict=True))
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        if bad:
            raise blame(self, moment, current_iter, bad[0], found[bad[0]], contexts, log)
        shares = self.shares.log() if self.shares is not None else {}
        self.log_dict = OrderedDict(stage=StageMark(self.plan, moment), **found, **shares)

    def get_current_log(self) -> Mapping:
        """The values of the last step."""
        self.settle()
        return self.log_dict
