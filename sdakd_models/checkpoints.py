"""Checkpoints of all players in BasicSR's format, and going on from them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from sdakd.compat import UserError
from sdakd_arch.weights import load_into, read_weights, save_whole
from sdakd_models.cotraining import CotrainedTeacher
from sdakd_models.finite import check_networks
from sdakd_models.threads import resume_threads


def peak_memory(device: torch.device) -> float | None:
    """The most memory that this process has held, in MiB: torch's on a GPU, all of it on a CPU; None on Windows."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path('/proc/self/status')
    if status.is_file():  # Linux's getrusage knows the peak of whoever started this process as well
        return int(re.search(r'VmHWM:\s+(\d+) kB', status.read_text())[1]) / 2**10
    if importlib.util.find_spec('resource') is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)  # bytes there, KiB elsewhere


class Checkpoints:
    """The part of :class:`sdakd_models.sdakd_model.SDAKDModel` that saves and resumes."""

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes every player's network and, unless this is the run's end (-1), the training state.

        Raises:
            UserError: The run ended before its last stage did, or weights are not finite; nothing is written then.
        """
        check_networks(self)
        if current_iter == -1 and self.last_iter < self.plan.total_iter:
            raise UserError(
                f'the run ended at iteration {self.last_iter:,d} of {self.plan.total_iter:,d}: the data ran out before '
                'the stages did; raise datasets:train:dataset_enlarge_ratio and continue with --auto_resume.'
            )
        with self.clock.aside('saving'):
            self._save(epoch, current_iter)

    def _save(self, epoch: int, current_iter: int) -> None:
        old = self.kept.add(current_iter) if current_iter != -1 else []
        cotrained = {teacher.player.name: teacher for teacher in self.cotrained}
        for player in self.players:
            if player.name == 'g' and self.cast.average is not None:
                self.save_network([player.bare, self.net_g_ema], 'net_g', current_iter, ['params', 'params_ema'])
            elif player.name in cotrained:
                self._save_teacher(cotrained[player.name], current_iter)
            else:
                self.save_network(player.bare, f'net_{player.name}', current_iter)
        self.save_training_state(epoch, current_iter)
        self._remove(old)
        if current_iter == -1 and (peak := peak_memory(self.device)) is not None:
            get_root_logger().info(f'Peak memory: {peak:,.0f} MiB ({self.device.type}).')

    def _save_teacher(self, teacher: CotrainedTeacher, current_iter: int) -> None:
        networks = [teacher.player.bare, teacher.shown]
        self.save_network(networks, f'net_{teacher.player.name}', current_iter, ['params', 'params_best'])

    @master_only
    def save_again(self, teacher: CotrainedTeacher, current_iter: int) -> None:
        """Writes a teacher that learns along anew: BasicSR saves before it validates, which may have replaced it."""
        if self._state_file(current_iter).is_file():
            self._save_teacher(teacher, current_iter)
            self._change_state(current_iter)
        if self.last_iter >= self.plan.total_iter:
            self._save_teacher(teacher, -1)

    @master_only
    def consider_best(self, score: float, lower: bool) -> None:
        """Keeps the checkpoint of the last iteration if none before it was better by the metric of ``keep_best``."""
        metric, before, iteration = self.scenario.best_by, self.kept.best, self.last_iter
        if self._state_file(iteration).is_file() and self.kept.consider(iteration, metric, score, lower):
            self._change_state(iteration)
            known = f', before {before.value:.4f} at {before.iteration:,d}' if before else ''
            get_root_logger().info(
                f'Best checkpoint so far, which is kept: iteration {iteration:,d} ({metric} {score:.4f}{known}).'
            )

    @master_only
    def _remove(self, iterations: Iterable[int]) -> None:
        """Removes all files of checkpoints."""
        for iteration in iterations:
            self._state_file(iteration).unlink(missing_ok=True)  # first: no state may be left without its networks
            for player in self.players:
                Path(self.path['models'], f'net_{player.name}_{iteration}.pth').unlink(missing_ok=True)

    def _state_file(self, iteration: int) -> Path:
        return Path(self.path['training_states'], f'{iteration}.state')

    def _results(self) -> dict:
        """What a validation may change of a training state."""
        return {
            'teacher_scores': {teacher.name: teacher.score for teacher in self.cotrained},
            'kept': self.kept.state(),
        }

    def _change_state(self, iteration: int) -> None:
        """Writes a training state anew: a validation comes after the checkpoint of its iteration."""
        path = self._state_file(iteration)
        save_whole(torch.load(path, map_location='cpu', weights_only=True) | self._results(), path)

    @master_only
    def save_network(self, net, net_label, current_iter, param_key='params') -> None:
        """BasicSR's checkpoint format, written whole or not at all."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        label = 'latest' if current_iter == -1 else current_iter
        content = {
            key: {name: tensor.detach().cpu() for name, tensor in self.get_bare_model(one).state_dict().items()}
            for key, one in zip(keys, nets, strict=True)
        }
        save_whole(content, os.path.join(self.path['models'], f'{net_label}_{label}.pth'))

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's ``.state`` file plus what must not change on resuming: stage, players and the teacher."""
        if current_iter == -1:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [player.optimizer.state_dict() for player in self.players],
            'schedulers': [],  # rates are a function of the iteration
            'clock': self.clock.state(),
            'threads': torch.get_num_threads(),
            'stage': self.plan.at(current_iter).name,
            'players': [player.name for player in self.players],
            'teachers': self.cast.fingerprints,
            'terms': {name: term.state() for name, term in self.terms.items()},
            'shares': self.shares.state() if self.shares is not None else {},
            **self._results(),
        }
        save_whole(state, self._state_file(current_iter))

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
            path = os.path.join(self.path['models'], f'net_{player.name}_{iteration}.pth')
            load_into(player.bare, read_weights(path, 'params', 'path:resume_state'), path, 'path:resume_state')
            if player.name == 'g' and self.cast.average is not None:
                state = read_weights(path, 'params_ema', 'path:resume_state')
                load_into(self.net_g_ema, state, path, 'path:resume_state')
        for teacher in self.cotrained:
            path = os.path.join(self.path['models'], f'net_{teacher.player.name}_{iteration}.pth')
            load_into(teacher.shown, read_weights(path, 'params_best', 'path:resume_state'), path, 'path:resume_state')
            teacher.score = resume_state['teacher_scores'][teacher.name]
        states = dict(zip(saved, resume_state['optimizers'], strict=True))  # in whatever order they were built
        for player in self.players:
            player.optimizer.load_state_dict(deepcopy(states[player.name]))
        for name, term in self.terms.items():
            term.load_state(resume_state.get('terms', {}).get(name, {}))
        if self.shares is not None:
            self.shares.load_state(resume_state.get('shares', {}))
        self.clock.load_state(resume_state.get('clock', {}), iteration)
        self.kept.load_state(resume_state.get('kept', {}))
        self.last_iter = iteration
