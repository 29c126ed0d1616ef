"""A long training of small networks: does its memory grow, does it leave files, processes or threads open?

    python test_scripts/soak.py --iters 5000

One process of BasicSR's loop with two that load images: three stages, pairs that are degraded while training and
reused, a checkpoint every 100 iterations, a validation every 200. Twice a second all processes are looked at; the first
fifth is left out, in which memory pools fill. Prints the slope of the memory in MiB per 1,000 iterations (least
squares, with its standard error) and the numbers of open files, threads and processes. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from kill_trainings import ROOT, conftest, descendants, options


def look(pid: int) -> tuple[float, float, int, int, int]:
    """Resident memory of a process and of all below it in MiB, open files, threads, processes."""
    pids = [pid, *descendants(pid)]
    memory, files, threads = [], 0, 0
    for each in pids:
        try:
            status = Path(f'/proc/{each}/status').read_text(encoding='utf-8')
            memory.append(int(re.search(r'VmRSS:\s+(\d+)', status)[1]) / 1024)
            threads += int(re.search(r'Threads:\s+(\d+)', status)[1])
            files += len(os.listdir(f'/proc/{each}/fd'))
        except (OSError, TypeError):
            continue  # it has ended
    return memory[0], sum(memory), files, threads, len(pids)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--iters', type=int, default=5000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = conftest.World(Path(folder), conftest.crops_of_photographs())
        given = options(world, 'soak', degraded=True, workers=2)
        for number, stage in enumerate(given['train']['stages'].values()):
            stage['iters'] = args.iters // 3 + (number < args.iters % 3)
        given['logger'] |= {'save_checkpoint_freq': 100, 'print_freq': 10}
        given['val']['val_freq'] = 200
        given['train'] |= {'pool_reuse': 2, 'teacher_margin': 2}
        file = world.write(given)
        command = [sys.executable, str(ROOT / 'sdakd/cli.py'), 'train', '-opt', file]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
        streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        process = subprocess.Popen(command, cwd=folder, env=environment, **streams)
        iteration, lines = [0], []

        def read() -> None:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r'iter: *([\d,]+), lr', line):
                    iteration[0] = int(found[1].replace(',', ''))

        threading.Thread(target=read, daemon=True).start()
        seen, begun = [], time.time()
        while process.poll() is None:
            time.sleep(0.5)
            try:
                seen.append((iteration[0], *look(process.pid)))
            except (IndexError, OSError):
                break
        if process.wait():
            raise SystemExit(''.join(lines[-20:]))
        table = np.array([row for row in seen if args.iters / 5 < row[0] < args.iters])
        print(f'{args.iters:,d} iterations in {time.time() - begun:.0f} s, {len(table)} looks')
        for name, column in (('the training process', 1), ('all its processes', 2)):
            (slope, _), covariance = np.polyfit(table[:, 0] / 1000, table[:, column], 1, cov=True)
            print(
                f'memory of {name}: {table[0, column]:.0f} to {table[-1, column]:.0f} MiB, '
                f'{slope:+.2f} +- {np.sqrt(covariance[0, 0]):.2f} MiB per 1,000 iterations'
            )
        for name, column in (('open files', 3), ('threads', 4), ('processes', 5)):
            values = table[:, column]
            first, last, least, most = values[0], values[-1], values.min(), values.max()
            print(f'{name}: {first:.0f} at first, {last:.0f} at last, {least:.0f} to {most:.0f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
