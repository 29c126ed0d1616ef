"""What BasicSR's training loop does not do: data in an order that survives a stop, and stopping itself.

The loop is BasicSR's. It builds its loaders by :func:`create_train_val_dataloader`, which :mod:`sdakd_models.launch`
puts in the place of BasicSR's, and the model asks its :class:`Loop` between two iterations whether to go on.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.utils import get_root_logger

from sdakd import stops
from sdakd.compat import UserError, exit_with_sentence
from sdakd_data.draws import Drawn, Draws, SampleError, training_loader
from sdakd_models.processes import ending_together, is_ending
from sdakd_models.scenario import held_out_of

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Stopped(SystemExit):
    """The end of a run that was asked to stop; its code is the exit status, 128 and the signal's number."""


class Loop:
    """A run of BasicSR's loop in this process.

    Args:
        debug: Whether tracebacks are shown.

    Attributes:
        model: The model that it trains, once there is one.
        iteration: The last iteration before it begins, 0 or a resumed run's.
        draws: The order of its samples.
        validations: The loaders of its validation sets.
        tb_logger: TensorBoard's writer, once there is one.
        wanted: The signal that has asked it to stop.
    """

    latest: Loop | None = None  # of this process

    def __init__(self, debug: bool = False) -> None:
        self.debug = debug
        self.model = None
        self.iteration, self.epoch = 0, 0
        self.draws: Draws | None = None
        self.validations: list[DataLoader] = []
        self.tb_logger = None
        self.wanted: int | None = None
        self.due = False  # a validation that a stop has cut off

    # -------------------------------------------------------------------------------------------------------- signals

    def listen(self) -> None:
        """From now on signals are requests to stop, until the second one; and other errors than a user's save too."""
        stops.spare_helpers()
        if threading.current_thread() is threading.main_thread():
            for number in stops.SIGNALS:
                if number != getattr(signal, 'SIGHUP', None) or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    signal.signal(number, self._hear)
        sys.excepthook = ending_together(last_words)

    def _hear(self, number: int, frame: object) -> None:
        if is_ending():
            return  # a launcher ends all when one has failed
        if self.wanted is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.wanted = number
        if self.model is None or self.model.opt['rank'] == 0:
            _say(f'{signal.Signals(number).name}: the run saves after this step and stops; once more stops it at once.')

    # ----------------------------------------------------------------------------------------------- between two steps

    def between(self) -> None:
        """Before every iteration: makes up for a validation that was cut off, and stops where that was asked for.

        Raises:
            Stopped: The run is saved.
        """
        if self.due:
            self.due = False
            for loader in self.validations:
                self.model.validation(loader, self.model.last_iter, self.tb_logger, self.model.opt['val']['save_img'])
        if self.agreed():
            self.leave()

    def interrupt(self) -> None:
        """In the middle of a validation, which may take long: a run of one process stops; it validates again later.

        Raises:
            Stopped: The run is saved.
        """
        if self.wanted is not None and not self.model.opt['dist']:
            self.leave()

    def agreed(self) -> bool:
        """Whether all processes know that the run is to stop; each of them hears signals at another time."""
        return self.model.stops if self.model.opt['dist'] else self.wanted is not None

    def leave(self) -> None:
        """Saves and ends the run.

        Raises:
            Stopped: Always.
        """
        said = self.save()
        if self.model.opt['rank'] == 0:
            _say(f'Stopped {said}')
        if self.tb_logger is not None:
            self.tb_logger.close()
        # a process that has heard nothing itself stops as the others do
        raise Stopped(128 + (self.wanted or signal.SIGTERM))

    def save(self) -> str:
        """Saves the last iteration unless that is done; returns where, and how to go on."""
        model, iteration = self.model, self.model.last_iter
        if iteration == 0:
            return 'before its first iteration was done; the same command begins again.'
        if not model.saved(iteration):
            model.save(self.epoch_of(iteration), iteration)
        return f'after iteration {iteration:,d}, which is saved in {model.path["experiments_root"]}; {GO_ON}'

    def epoch_of(self, iteration: int) -> int:
        """How often all images have been drawn."""
        return self.draws.epoch(max(1, iteration)) if self.draws is not None else self.epoch


GO_ON = 'the same command with --auto_resume continues.'
FROM_LAST = 'the same command with --auto_resume continues from the last checkpoint.'


def _say(text: str) -> None:
    sys.stderr.write(f'\n{text}\n')
    sys.stderr.flush()


def last_words(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """The excepthook of a training: what no user's mistake explains is logged, and the last whole step is saved.

    Exit status 1; a process that was asked to stop and lost its workers by the same signal has that signal's.
    """
    if hasattr(signal, 'SIGCHLD'):  # torch's handler raises an error, wherever this process is, when a worker has ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    loop = Loop.latest
    model = loop.model if loop is not None else None
    if model is None or (issubclass(kind, UserError) and not issubclass(kind, SampleError)):
        exit_with_sentence(kind, error, trace)
        return
    if issubclass(kind, KeyboardInterrupt):
        raise SystemExit(130)
    lost = 'DataLoader worker' in str(error) or isinstance(error, ConnectionError | EOFError)
    if isinstance(error, SampleError):
        reason = error.report()
    elif lost:
        reason = (
            'datasets:train:num_worker_per_gpu: a process that loads images was killed, mostly because memory ran out; '
            'write a smaller number.'
        )
    else:
        where = _note(''.join(traceback.format_exception(kind, error, trace)), loop)
        what = f' in {model.at_work}' if model.at_work else ''
        failed = f'iteration {model.last_iter + 1:,d} failed{what} ({kind.__name__}: {_first_line(error)})'
        reason = f'{failed}; {where} holds the traceback.'
    try:
        if model.opt['dist']:  # the others do not wait for this one, without whom nothing can be saved
            said = f'The run ends; {FROM_LAST}'
        else:
            said = f'The run ends {loop.save()}'
    except Exception as second:  # such as weights that are not finite, or a full disk
        said = f'It could not be saved ({_first_line(second)}); {FROM_LAST}'
    _say(said if loop.wanted is not None else f'Error: {reason} {said}')
    raise SystemExit(1 if loop.wanted is None else 128 + loop.wanted)


def _note(lines: str, loop: Loop) -> str:
    """Writes a traceback into the run's log file, where a user finds what to report; returns that file's name."""
    handlers = [each for each in get_root_logger().handlers if isinstance(each, logging.FileHandler)]
    if loop.debug:
        _say(lines)
    if handlers:
        handlers[0].handle(logging.makeLogRecord({'msg': lines, 'levelname': 'ERROR', 'levelno': logging.ERROR}))
        return handlers[0].baseFilename
    file = Path(loop.model.path['log'], f'error_{loop.model.opt["rank"]}.log')  # only the main process has a log
    file.write_text(lines, encoding='utf-8')
    return str(file)


def _first_line(error: BaseException) -> str:
    return (' '.join(str(error).split())[:200] or type(error).__name__).rstrip('.')


# ------------------------------------------------------------------------------------------------------------- loaders


def create_train_val_dataloader(opt: dict, logger) -> tuple:
    """BasicSR's function of that name, for a run that is one long epoch and may begin anywhere.

    Args:
        opt: The completed options of the run.
        logger: Receives the numbers.

    Returns:
        The loader and sampler of the training data, the loaders of all validation sets, and numbers of the last epoch
        and iteration.
    """
    loop = Loop.latest
    total, seed = opt['train']['total_iter'], opt['manual_seed']
    train = draws = None
    loop.validations = []
    for phase, options in opt['datasets'].items():
        dataset = build_dataset(options)
        if phase == 'train':
            skip = options.get('on_bad_sample') == 'skip'
            batch, processes = options['batch_size_per_gpu'], opt['world_size']
            drawn = Drawn(dataset, seed, 'datasets:train', skip, held_out_of(opt))
            draws = Draws(len(drawn), batch, seed, loop.iteration + 1, total, opt['rank'], processes)
            if 'loading' in opt:
                logger.info(opt['loading'])
            train = training_loader(drawn, draws, opt)
            held = f', {len(drawn.held):,d} more held out' if drawn.held else ''
            logger.info(
                f'Training statistics:\n\tNumber of train images: {len(drawn):,d}{held}\n\tBatch size per gpu: {batch}'
                f'\n\tWorld size (gpu number): {processes}\n\tEpochs: {draws.epoch(total) + 1:,d}; iters: {total:,d}.'
            )
        else:
            loader = build_dataloader(dataset, options, num_gpu=opt['num_gpu'], dist=opt['dist'], seed=seed)
            loader.generator = torch.Generator()  # else making an iterator would draw from the training's
            logger.info(f'Number of val images/folders in {options["name"]}: {len(dataset):,d}')
            loop.validations.append(loader)
    loop.draws = draws
    return train, draws, loop.validations, loop.epoch, total
