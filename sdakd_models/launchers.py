"""How a run finds its GPUs and its other processes: alone, by torchrun or by SLURM."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from basicsr.utils.dist_util import get_dist_info, init_dist

from sdakd.compat import Mistakes, UserError, one_line
from sdakd_models import processes


def distribute(opt: dict, launcher: str, file: str, mistakes: Mistakes) -> None:
    """Starts distributed training where a launcher asks for it: NCCL on GPUs, Gloo on CPUs."""
    opt['dist'] = launcher != 'none'
    with mistakes.collect():
        opt['num_gpu'] = _gpus(opt.get('num_gpu', 'auto'), file, opt['dist'])
        if launcher == 'pytorch' and 'RANK' not in os.environ:
            raise UserError(
                '--launcher pytorch',
                f'no launcher has started this process, run `torchrun --nproc_per_node=N {sys.argv[0]} -opt {file} '
                '--launcher pytorch`.',
            )
        if launcher == 'slurm':
            _take_from_slurm((opt.get('dist_params') or {}).get('port'), file)
    if mistakes.about('num_gpu', '--launcher pytorch', '--launcher slurm'):
        opt |= {'num_gpu': 0, 'dist': False}  # for the other checks
    elif opt['dist']:
        params = {key: value for key, value in (opt.get('dist_params') or {}).items() if key == 'backend'}
        if not torch.distributed.is_available():
            raise UserError(f'--launcher {launcher}', 'this torch has no torch.distributed; train without a launcher.')
        if not torch.distributed.is_nccl_available() and params.get('backend', 'nccl') == 'nccl':
            params['backend'] = 'gloo'  # NCCL is Linux's
        try:
            if opt['num_gpu'] == 0:
                torch.distributed.init_process_group('gloo')
            else:
                init_dist('pytorch', **params)
        except (RuntimeError, ValueError, OSError) as error:
            reason = ' '.join(str(error).split())[:200].rstrip('.')
            raise UserError(f'--launcher {launcher}', f'the processes do not find each other ({reason}).') from None
        processes.start()
    opt['rank'], opt['world_size'] = get_dist_info()


def _take_from_slurm(port: int | None, file: str) -> None:
    """Tells a task of SLURM in torch's variables who it is and where the others are, as BasicSR does, on CPUs as well.

    Raises:
        UserError: No ``srun`` has started this process, or SLURM does not name the first machine.
    """
    try:
        task, tasks, nodes = (os.environ[f'SLURM_{name}'] for name in ('PROCID', 'NTASKS', 'NODELIST'))
    except KeyError as error:
        raise UserError(
            '--launcher slurm',
            f'no srun has started this process ({error.args[0]} is not set), run `srun --ntasks=N {sys.argv[0]} -opt '
            f'{file} --launcher slurm`.',
        ) from None
    try:
        listed = subprocess.run(['scontrol', 'show', 'hostname', nodes], capture_output=True, text=True, check=True)
        first = listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            '--launcher slurm',
            f'`scontrol show hostname {nodes}` does not name the machines ({one_line(error)}); let srun start '
            'torchrun instead, see docs/distributed.md.',
        ) from None
    port = str(port or os.environ.get('MASTER_PORT', 29500))
    found = {'MASTER_ADDR': first, 'MASTER_PORT': port, 'WORLD_SIZE': tasks, 'RANK': task}
    os.environ.update(found | {'LOCAL_RANK': os.environ.get('SLURM_LOCALID', '0')})


def _gpus(wanted: object, file: str, distributed: bool) -> int:
    """The number of GPUs that ``num_gpu`` asks for."""
    there = torch.cuda.device_count()
    if wanted != 'auto' and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0):
        raise UserError('num_gpu', f'write auto or a number of GPUs, not {wanted!r}.')
    number = there if wanted == 'auto' else wanted
    if number > there:
        raise UserError('num_gpu', f'{wanted} GPUs are asked for, torch sees {there}; write auto, or 0 for the CPU.')
    if number > 1 and not distributed:
        raise UserError(
            'num_gpu',
            f'{number} GPUs need a launcher, run `torchrun --nproc_per_node={number} {sys.argv[0]} -opt {file} '
            '--launcher pytorch`, or write num_gpu: 1.',
        )
    return number
