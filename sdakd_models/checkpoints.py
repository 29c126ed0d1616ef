"""Checkpoints of all players in BasicSR's format, and going on from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from sdakd import machine
from sdakd.compat import UserError
from sdakd_arch.weights import load_into, read_weights, save_whole
from sdakd_data.randomness import random_state, seed_all, set_random_state
from sdakd_models.cotraining import CotrainedTeacher
from sdakd_models.finite import check_networks
from sdakd_models.manifest import Manifest, is_pool
from sdakd_models.processes import meet
from sdakd_models.threads import resume_threads

PROCESSES, NETWORKS, BATCHES, HELD_BACK = 3, 4, 5, 6  # what a seed is for, beside those of data and validation


def peak_memory(device: torch.device) -> float | None:
    """The most memory that this process has held, in MiB: torch's on a GPU, all of it on a CPU."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    return machine.peak_memory()


class Checkpoints:
    """The part of :class:`sdakd_models.sdakd_model.SDAKDModel` that saves and resumes."""

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes a checkpoint, and removes those that it takes the place of; see :meth:`write`."""
        self.remove(self.write(epoch, current_iter))

    def write(self, epoch: int, current_iter: int) -> list[int]:
        """Writes every player's network and, unless this is the run's end (-1), the training state.

        Returns:
            The iterations whose checkpoints have to go now.

        Raises:
            UserError: The run ended before its last stage did, or losses or weights are not finite; nothing is written
                then.
        """
        self.settle()
        check_networks(self)
        if current_iter == -1 and self.last_iter < self.plan.total_iter:
            raise UserError(
                f'the run ended at iteration {self.last_iter:,d} of {self.plan.total_iter:,d}: its data loader has no '
                'more samples; use the one of sdakd_models.loop, and continue with --auto_resume.'
            )
        with self.clock.aside('saving'):
            return self._write(epoch, current_iter)

    def _write(self, epoch: int, current_iter: int) -> list[int]:
        old: list[int] = []
        if current_iter != -1:
            old = self.kept.add(current_iter)
            if self.opt['rank'] == 0:  # no state may be left beside networks that are not its own
                self._state_file(current_iter).unlink(missing_ok=True)
        cotrained = {teacher.player.name: teacher for teacher in self.cotrained}
        for player in self.players:
            if player.name == 'g' and self.cast.average is not None:
                self.save_network([player.bare, self.net_g_ema], 'net_g', current_iter, ['params', 'params_ema'])
            elif player.name in cotrained:
                self._save_teacher(cotrained[player.name], current_iter)
            else:
                self.save_network(player.bare, f'net_{player.name}', current_iter)
        self.save_training_state(epoch, current_iter)
        if current_iter == -1 and (peak := peak_memory(self.device)) is not None:
            get_root_logger().info(f'Peak memory: {peak:,.0f} MiB ({self.device.type}).')
        return old

    def saved(self, iteration: int) -> bool:
        """Whether there is a checkpoint of an iteration."""
        return self._state_file(iteration).is_file()

    def _save_teacher(self, teacher: CotrainedTeacher, current_iter: int, manifest: Manifest | None = None) -> None:
        networks = [teacher.player.bare, teacher.shown]
        label, keys = f'net_{teacher.player.name}', ['params', 'params_best']
        self.save_network(networks, label, current_iter, keys, manifest)

    @master_only
    def note_validation(self) -> None:
        """Brings the checkpoint of the last iteration up to date: BasicSR saves before it validates.

        Teachers that learn along may have been replaced, and there may be a new best checkpoint. A run that ends before
        this is done validates again when it goes on.
        """
        iteration = self.last_iter
        if self.saved(iteration):
            manifest = Manifest(self.path['experiments_root'], iteration).read()
            for teacher in self.cotrained:
                self._save_teacher(teacher, iteration, manifest)
            state = torch.load(self._state_file(iteration), map_location='cpu', weights_only=True) | self._results()
            self._write_state(state, manifest)
        if iteration >= self.plan.total_iter:
            for teacher in self.cotrained:
                self._save_teacher(teacher, -1)

    @master_only
    def consider_best(self, score: float, lower: bool) -> None:
        """Keeps the checkpoint of the last iteration if none before it was better by the metric of ``keep_best``."""
        metric, before, iteration = self.scenario.best_by, self.kept.best, self.last_iter
        if self.saved(iteration) and self.kept.consider(iteration, metric, score, lower):
            known = f', before {before.value:.4f} at {before.iteration:,d}' if before else ''
            get_root_logger().info(
                f'Best checkpoint so far, which is kept: iteration {iteration:,d} ({metric} {score:.4f}{known}).'
            )

    @master_only
    def remove(self, iterations: Iterable[int]) -> None:
        """Removes all files of checkpoints."""
        for iteration in iterations:
            self._state_file(iteration).unlink(missing_ok=True)  # first: no state may be left without its networks
            for player in self.players:
                Path(self.path['models'], f'net_{player.name}_{iteration}.pth').unlink(missing_ok=True)
            for file in self._files_of_ranks(iteration):
                file.unlink()
            Manifest(self.path['experiments_root'], iteration).path.unlink(missing_ok=True)

    def _state_file(self, iteration: int) -> Path:
        return Path(self.path['training_states'], f'{iteration}.state')

    def _files_of_ranks(self, iteration: int | str) -> list[Path]:
        """What every process has written for itself, random numbers and pools: of an iteration, or of a pattern."""
        return sorted(Path(self.path['training_states']).glob(f'{iteration}_[rp]*[0-9].pth'))

    def _results(self) -> dict:
        """What a validation may change of a training state."""
        due = self.scenario.val_freq and self.last_iter % self.opt['val']['val_freq'] == 0
        return {
            'teacher_scores': {teacher.name: teacher.score for teacher in self.cotrained},
            'kept': self.kept.state(),
            'best_metrics': {
                name: {metric: {**best, 'val': float(best['val'])} for metric, best in values.items()}
                for name, values in getattr(self, 'best_metric_results', {}).items()
            },
            'validation_due': bool(due) and self.validated != self.last_iter,
        }

    @master_only
    def save_network(self, net, net_label, current_iter, param_key='params', manifest=None) -> None:
        """BasicSR's checkpoint format, written whole or not at all; the manifest of a known checkpoint is changed."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        label = 'latest' if current_iter == -1 else current_iter
        content = {
            key: {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in self.get_bare_model(one).state_dict().items()
            }
            for key, one in zip(keys, nets, strict=True)
        }
        path = Path(self.path['models'], f'{net_label}_{label}.pth')
        save_whole(content, path, ready=partial(manifest.add, path) if manifest is not None else None)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's ``.state`` file plus what must not change on resuming: stages, players and the teacher.

        Beside it lie what is every process's own, ``<iteration>_random<rank>.pth`` and ``<iteration>_pool<rank>.pth``,
        and the manifest of all files.
        """
        if current_iter == -1:
            return
        self._save_own(current_iter)
        meet()  # the manifest names the files of all
        if self.opt['rank'] > 0:
            return
        state = {
            'epoch': epoch if self.loop is None else self.loop.epoch_of(current_iter),
            'iter': current_iter,
            'optimizers': [player.optimizer.state_dict() for player in self.players],
            'schedulers': [],  # rates are a function of the iteration
            'clock': self.clock.state(),
            'threads': torch.get_num_threads(),
            'stage': self.plan.at(current_iter).name,
            'plan': self.plan.state(),
            'held_out': self.scenario.held_out,
            'players': [player.name for player in self.players],
            'teachers': self.cast.fingerprints,
            'terms': {name: term.state() for name, term in self.terms.items()},
            'shares': self.shares.state() if self.shares is not None else {},
            'scaler': self.cast.scaler.state_dict(),
            'precisions': dict(self.cast.precisions.measured),
            **self._results(),
        }
        manifest = Manifest(self.path['experiments_root'], current_iter)
        manifest.seed = self.opt['manual_seed']
        networks = [Path(self.path['models'], f'net_{player.name}_{current_iter}.pth') for player in self.players]
        for file in (*networks, *self._files_of_ranks(current_iter)):
            manifest.add(file)
        self._write_state(state, manifest)
        self._drop_pools(current_iter)

    def _save_own(self, iteration: int) -> None:
        """Random numbers and the pool of this process."""
        own = {'random': random_state(self.device)}
        if pool := self.feeder.pool_state():
            own['pool'] = pool
        for kind, content in own.items():
            save_whole(content, Path(self.path['training_states'], f'{iteration}_{kind}{self.opt["rank"]}.pth'))

    def pool_state(self) -> dict:
        """The pairs that wait in a pool, and teachers' answers to them; empty without a pool."""
        return self.pool.state() if self.pool is not None else {}

    def load_pool(self, state: Mapping) -> None:
        """Goes on with the pool that :meth:`pool_state` returned, if its pairs are of this run's size."""
        if self.pool is not None:
            self.pool.load_state(state, self.device)

    def _drop_pools(self, iteration: int) -> None:
        """Keeps the pools of the last two checkpoints: they are large, and who goes on from an older one fills one."""
        pools = {path: int(path.name.split('_')[0]) for path in self._files_of_ranks('[0-9]*') if is_pool(path)}
        spared = sorted({number for number in pools.values() if number <= iteration})[-2:]
        for path, number in pools.items():
            if spared and number < spared[0]:
                path.unlink(missing_ok=True)

    def _write_state(self, state: Mapping, manifest: Manifest) -> None:
        """Writes a training state after its manifest, so that no state is ever without one."""
        path = self._state_file(state['iter'])
        save_whole(dict(state), path, ready=partial(manifest.add, path))

    def resume_training(self, resume_state: Mapping) -> None:
        """Brings back every player with its optimizer.

        Raises:
            UserError: The state belongs to another set of players or another teacher, or a checkpoint is missing.
        """
        names = [player.name for player in self.players]
        saved = resume_state.get('players', names)
        if sorted(saved) != sorted(names) or len(resume_state['optimizers']) != len(names):
            raise UserError(
                f'path:resume_state: it was saved with the players {resume_state.get("players")}, the options define '
                f'{names}; resume with the option file of that run.'
            )
        for name, own in self.cast.fingerprints.items():
            if resume_state.get('teachers', {}).get(name) != own:
                where = 'teacher' if name == 'teacher' else f'teachers:{name}'
                raise UserError(f'{where}:weights: this is not the teacher that the run to resume was trained with.')
        resume_threads(self.opt, resume_state)
        iteration = resume_state['iter']
        for player in self.players:
            path = Path(self.path['models'], f'net_{player.name}_{iteration}.pth')
            load_into(player.bare, read_weights(path, 'params', 'path:resume_state'), path, 'path:resume_state')
            if player.name == 'g' and self.cast.average is not None:
                state = read_weights(path, 'params_ema', 'path:resume_state')
                load_into(self.net_g_ema, state, path, 'path:resume_state')
        for teacher in self.cotrained:
            path = Path(self.path['models'], f'net_{teacher.player.name}_{iteration}.pth')
            load_into(teacher.shown, read_weights(path, 'params_best', 'path:resume_state'), path, 'path:resume_state')
            teacher.score = resume_state['teacher_scores'][teacher.name]
        states = dict(zip(saved, resume_state['optimizers'], strict=True))  # in whatever order they were built
        for player in self.players:
            player.load_optimizer(states[player.name])
        for name, term in self.terms.items():
            term.load_state(resume_state.get('terms', {}).get(name, {}))
        if self.shares is not None:
            self.shares.load_state(resume_state.get('shares', {}))
        self.cast.precisions.measured = resume_state.get('precisions', {})
        self.cast.lower_teachers()
        if resume_state.get('scaler'):
            self.cast.scaler.load_state_dict(resume_state['scaler'])
        self.clock.load_state(resume_state.get('clock', {}), iteration)
        self.kept.load_state(resume_state.get('kept', {}))
        self.last_iter = iteration
        self._load_results(resume_state)
        self._load_own(iteration)

    def _load_results(self, state: Mapping) -> None:
        """The best values so far, as BasicSR logs them; and whether a validation is due."""
        metrics = (self.opt.get('val') or {}).get('metrics') or {}
        known = deepcopy(state.get('best_metrics', {}))
        if known and all(values.keys() == metrics.keys() for values in known.values()):
            self.best_metric_results = known
        self.validated = 0 if state.get('validation_due') else self.last_iter
        if self.loop is not None:
            self.loop.due |= bool(state.get('validation_due')) and self.last_iter < self.plan.total_iter

    def _load_own(self, iteration: int) -> None:
        """Random numbers and the pool of this process; one that was not there begins with its own."""
        found = {}
        for kind in ('random', 'pool'):
            path = Path(self.path['training_states'], f'{iteration}_{kind}{self.opt["rank"]}.pth')
            if path.is_file():
                found[kind] = torch.load(path, map_location='cpu', weights_only=True)
        if 'pool' in found and self.feeder is self:
            self.load_pool(found['pool'])
        if 'random' in found:
            set_random_state(found['random'], self.device)
        else:
            seed_all(self.opt['manual_seed'], PROCESSES, iteration, self.opt['rank'], device=self.device)
