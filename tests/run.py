"""Runs every test file in a process of its own, some at a time: ``make test``.

Not all of the native runtimes that tests load (OpenVINO, ncnn, ONNX, TensorBoard) share a process. Each has one thread:
the small networks of tests gain nothing by more, and threads of several processes wait for each other. The largest
files come first, so that none is left alone at the end.

    python tests/run.py [--jobs 2] [--start spawn] [file ...]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from sdakd.progress import Progress, sign

ROOT = Path(__file__).resolve().parents[1]
SIMULATED = ROOT / 'tests/simulated'  # reads SIMULATE when Python starts


def run(file: Path, start: str | None = None) -> tuple[int, str, float]:
    """The status of pytest on a file, what it printed, and the seconds."""
    begun = time.monotonic()
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'} | ({'SIMULATE': start} if start else {})
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(SIMULATED), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-m', 'pytest', '-q', str(file)]
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace'}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False, **streams)
    return done.returncode, done.stdout, time.monotonic() - begun


def counts(printed: str) -> Counter:
    """What pytest's last line says: ``34 passed, 1 skipped, 2 warnings in 20.10s``, without warnings."""
    lines = [line for line in printed.splitlines() if re.search(r' in \d[\d.]*s\b', line)]
    found = re.findall(r'(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b', lines[-1]) if lines else []
    return Counter({'error' if name == 'errors' else name: int(number) for number, name in found})


def shown(found: Counter, seconds: float) -> str:
    """``34 passed, 1 skipped in 20.1 s``."""
    parts = [f'{number:,d} {name}' for name, number in found.items() if number]
    return f'{", ".join(parts) or "no test was run"} in {seconds:.1f} s'


def say(line: str) -> None:
    sign()
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--jobs', type=int, default=2, help='how many files at a time (default: 2)')
    ways = ('fork', 'spawn', 'forkserver')
    parser.add_argument('--start', choices=ways, help="how processes start their workers (default: the system's way)")
    parser.add_argument('files', nargs='*', type=Path, help='default: all')
    arguments = parser.parse_args()
    files = [file.resolve() for file in arguments.files] or list(ROOT.glob('tests/**/test_*.py'))
    files.sort(key=lambda file: -file.stat().st_size)
    failed, total, begun = [], Counter(passed=0, skipped=0, failed=0), time.monotonic()
    with Progress('tests', len(files), 'files') as progress, ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        waiting = {pool.submit(run, file, arguments.start): os.path.relpath(file, ROOT) for file in files}
        for number, future in enumerate(as_completed(waiting), 1):
            name, (status, printed, seconds) = waiting[future], future.result()
            found = counts(printed)
            total += found
            progress.step()
            if status:
                failed.append(name)
                say(printed.rstrip())
            say(f'{number}/{len(files)} {name}: {shown(found, seconds)}{", FAILED" if status else ""}')
    say(f'{len(files)} test files: {shown(total, time.monotonic() - begun)}')
    if failed:
        say(f'Failed: {" ".join(sorted(failed))}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
