"""Several students in one run: BasicSR's loop trains them as if they were one model."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from basicsr.utils import init_tb_logger
from basicsr.utils.registry import MODEL_REGISTRY

from sdakd.compat import UserError
from sdakd_arch.width import lookup
from sdakd_data.randomness import Snapshot
from sdakd_models.clock import TrainingLog
from sdakd_models.common import Common
from sdakd_models.loop import Loop

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from sdakd_models.sdakd_model import SDAKDModel

# ------------------------------------------------------------------------------------------------------------- the log

_speaks = ''  # the student that logs


@contextlib.contextmanager
def speaking(name: str) -> Iterator[None]:
    """What is logged meanwhile concerns one student, whose log file it goes to; a mistake is in its entry."""
    global _speaks
    before, _speaks = _speaks, name
    try:
        yield
    except UserError as error:
        raise error.within(f'students:{name}') from None
    finally:
        _speaks = before


def _mark(record: logging.LogRecord) -> bool:
    record.student, record.prefix = _speaks, f'{_speaks}: ' if _speaks else ''
    return True


class _OwnLog(logging.FileHandler):
    """The log file of one student: what concerns it, and what concerns all."""

    def __init__(self, file: str, student: str) -> None:
        super().__init__(file, 'w', encoding='utf-8', errors='backslashreplace')
        self.student = student
        self.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, 'student', '') in ('', self.student)


def open_logs(logger: logging.Logger, students: Mapping[str, Mapping]) -> None:
    """Has every student write a log file, as in a run of its own, and the common log say who speaks.

    Args:
        logger: BasicSR's.
        students: The completed options of each; none for a run of one student.
    """
    for handler in [each for each in logger.handlers if isinstance(each, _OwnLog)]:
        handler.close()
        logger.removeHandler(handler)
    logger.removeFilter(_mark)
    if not students:
        return
    logger.addFilter(_mark)
    common = logging.Formatter('%(asctime)s %(levelname)s: %(prefix)s%(message)s', defaults={'prefix': ''})
    for handler in logger.handlers:
        handler.setFormatter(common)
    stamp = time.strftime('%Y%m%d_%H%M%S')
    for name, opt in students.items():
        logger.addHandler(_OwnLog(os.path.join(opt['path']['log'], f'train_{opt["name"]}_{stamp}.log'), name))


class StudentsLog(TrainingLog):
    """A line for every student."""

    def __call__(self, log_vars: Mapping) -> None:
        """Logs an iteration; see :meth:`StudentsModel.get_current_log`."""
        values = dict(log_vars)
        found = values.pop('students')
        for name, member in self.loop.model.members.items():
            with speaking(name):
                self.exp_name, self.tb_logger = name, self.loop.model.writers.get(name)
                self.use_tb_logger = self.tb_logger is not None
                super().__call__({**values, 'lrs': member.get_current_learning_rate(), **found[name]})


# ------------------------------------------------------------------------------------------------------------ training


class StudentsModel:
    """The models of several students, each with all that it has in a run of its own, on the same batches.

    The first one takes the batches: it degrades them and has the pool. Each makes its step from the same random
    numbers. A teacher that stays as it is is there once and is run once (:class:`sdakd_models.common.Common`).

    Args:
        opt: The completed options of the run, with those of every student under ``students``.
    """

    def __init__(self, opt: Mapping) -> None:
        self.opt, self.path = opt, opt['path']
        self.common = Common()
        self.members: dict[str, SDAKDModel] = {}
        self.writers = {}
        for name, options in opt['students'].items():
            with speaking(name):
                cls = lookup(MODEL_REGISTRY, options['model_type'], 'model_type')
                member = self.members[name] = cls({**options, 'common': self.common})
                self.common.members.append(member)
            if options['logger'].get('use_tb_logger') and 'debug' not in options['name']:
                self.writers[name] = init_tb_logger(os.path.join(opt['root_path'], 'tb_logger', options['name']))
        self.common.share_backbones()
        for member in self.members.values():
            member.cast.lower_teachers()
        self.first, *self.others = self.members.values()
        self.clock = self.first.clock
        for member in self.others:
            member.feeder, member.clock, member.pool = self.first, self.clock, self.first.pool
        self.loop = Loop.latest
        if self.loop is not None:
            self.loop.model = self

    @property
    def last_iter(self) -> int:
        """The last iteration that some student has made."""
        return max(member.last_iter for member in self.members.values())

    @property
    def stops(self) -> bool:
        return any(member.stops for member in self.members.values())

    @property
    def at_work(self) -> str:
        """What a step is computing, for whom."""
        found = ((name, member.at_work) for name, member in self.members.items() if member.at_work)
        return next((f'{term} of students:{name}' for name, term in found), '')

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Begins an iteration; see :meth:`sdakd_models.sdakd_model.SDAKDModel.update_learning_rate`."""
        for member in self.members.values():
            member.update_learning_rate(current_iter, warmup_iter)

    def get_current_learning_rate(self) -> list[float]:
        return self.first.get_current_learning_rate()

    def feed_data(self, data: Mapping) -> None:
        """Takes a batch for all."""
        for name, member in self.members.items():
            with speaking(name):
                member.settle()
        self.first.feed_data(data)
        batch = {name: getattr(self.first, name) for name in self.first.batch if hasattr(self.first, name)}
        for member in self.others:
            vars(member).update(batch)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of every student.

        Raises:
            UserError: A student has drawn other random numbers than the first one.
        """
        before, after = Snapshot(self.first.device), None
        for name, member in self.members.items():
            if after is not None:
                before.put_back()
            with speaking(name):
                member.optimize_parameters(current_iter)
                now = Snapshot(self.first.device)
                if after is not None and not now.equals(after):
                    raise UserError(
                        '',
                        f'in iteration {current_iter:,d} it has drawn other random numbers than the first student, and '
                        'would have other training data in a run of its own; give it one.',
                    )
                after = now
        self.common.forget()

    def get_current_log(self) -> Mapping:
        """The values of the last step by student, as ``students``."""
        found = {}
        for name, member in self.members.items():
            with speaking(name):
                found[name] = member.get_current_log()
        return {'students': found}

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes the checkpoints of all; older ones go when all are there.

        Raises:
            UserError: As :meth:`sdakd_models.checkpoints.Checkpoints.write`; or an iteration has ended in the middle.
        """
        if any(member.last_iter != self.last_iter for member in self.members.values()):
            sentence = f'iteration {self.last_iter:,d} has ended before all of them had made their step.'
            raise UserError('students', sentence)
        old = {}
        for name, member in self.members.items():
            with speaking(name):
                old[name] = member.write(epoch, current_iter)
        for name, member in self.members.items():
            member.remove(old[name])
        self._flush()

    def saved(self, iteration: int) -> bool:
        """Whether all have a checkpoint of an iteration."""
        return all(member.saved(iteration) for member in self.members.values())

    def validation(self, dataloader: DataLoader, current_iter: int, tb_logger: object, save_img: bool = False) -> None:
        """Validates all on a set."""
        for name, member in self.members.items():
            with speaking(name):
                member.validation(dataloader, current_iter, self.writers.get(name), save_img)
        self._flush()

    def resume_training(self, resume_state: Mapping) -> None:
        """Brings back every student from its own state, all of one iteration."""
        for name, member in self.members.items():
            with speaking(name):
                member.resume_training(resume_state['students'][name])

    def _flush(self) -> None:
        for writer in self.writers.values():  # BasicSR's loop closes none of them
            writer.flush()
