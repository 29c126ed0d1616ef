"""A comparison as a job file of SLURM's: arrays of one task a training, each after what it begins with."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdakd.commands.compare.matrix import Matrix
from sdakd.compat import UserError
from sdakd.files.images import write
from sdakd.files.runs import ROOT

TEMPLATE = """\
#!/bin/bash
# The comparison {config} as jobs of SLURM: {tasks} tasks in {stages} arrays, one after the other.
#
#   bash {hint} --partition=gpu --time=24:00:00     # submits all of them; options go to every sbatch
#   GPUS= bash {hint}                               # tasks without a GPU
#
# Give it again after a kill or a time limit: what is done is kept, what was begun goes on from its last checkpoint.
# `sdakd compare --slurm` writes this file; write it again when methods, widths, seeds or factors have changed.
#SBATCH --job-name={job}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:TERM@180
set -eu

{arrays}
if [ "${{1:-}}" = run ]; then  # a task: one part of the comparison
  declare -n parts="part_$2"
  cd {folder}
  export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-${{OMP_NUM_THREADS:-1}}}}"
{path}  exec {command} --part "${{parts[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
fi

mkdir -p {logs}
gpus=(${{GPUS-1}})
gpus=("${{gpus[@]/#/--gres=gpu:}}")
after=()
for stage in {order}; do
  declare -n parts="part_$stage"
  job=$(sbatch --parsable --array="0-$((${{#parts[@]}} - 1))" --output={logs}/"$stage"_%a.log --open-mode=append \\
    "${{gpus[@]}}" "${{after[@]}}" "$@" "$0" run "$stage")
  echo "$stage: job ${{job%%;*}}, ${{#parts[@]}} tasks"
  after=("--dependency=afterany:${{job%%;*}}")  # a broken training is for its own cells alone to miss
done
"""


def write_jobs(file: Path, config: Path, matrix: Matrix, groups: Mapping[str, Sequence[str]]) -> str:
    """Writes the job file.

    Args:
        file: It.
        config: The comparison's option file.
        matrix: The comparison.
        groups: Names of parts, by arrays in their order.

    Returns:
        What to do with it.

    Raises:
        UserError: The file cannot be written.
    """
    command = [sys.executable, '-m', 'sdakd.cli', 'compare', '-opt', str(config), '-o', str(matrix.output)]
    paths = [part for part in os.environ.get('PYTHONPATH', '').split(os.pathsep) if part]
    try:
        importlib.metadata.distribution('sdakd')
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        paths.append(str(ROOT))
    path = f'  export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}\n' if paths else ''
    tasks = sum(map(len, groups.values()))
    text = TEMPLATE.format(
        config=config.name,
        hint=shlex.quote(file.name),
        job=re.sub(r'[^\w.-]+', '_', config.stem),  # a directive is cut at the first space
        tasks=tasks,
        stages=len(groups),
        arrays=''.join(f'part_{group}=({" ".join(map(shlex.quote, names))})\n' for group, names in groups.items()),
        folder=shlex.quote(os.getcwd()),
        path=path,
        command=shlex.join(command),
        logs=shlex.quote(str(matrix.output / 'slurm')),
        order=' '.join(groups),
    )
    try:
        write(file, text.encode())
    except OSError as error:
        raise UserError('--slurm', f'{file} cannot be written ({error.strerror}); name another file.') from None
    submit = f'bash {shlex.quote(str(file))}'
    return f'{file}: {tasks} tasks in {len(groups)} arrays; `{submit}` submits them, options of sbatch behind it.\n'
