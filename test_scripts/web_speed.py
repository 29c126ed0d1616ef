r"""What the page of `sdakd export --to web` costs: time and memory beside ONNX Runtime and `sdakd upscale`.

    python test_scripts/web_speed.py [-m MODEL] [--threads 2]

Two pictures of a photograph in scikit-image, 256x256 and 1280x800 pixels. The page is served by a plain server and
opened in headless Chromium, in WebAssembly with as many threads as the machine has cores; its time is from choosing
the file to the result, with decoding and the PNG. ONNX Runtime computes the site's own graph on the whole picture, with
as many threads, and reads and writes no file. `sdakd upscale` tells its own time, from reading the file to writing it.
Times are medians of ``--rounds`` after one that is not counted (`sdakd upscale`: of as many commands). Memory is the
peak, in MiB: of the page the sum over all processes of the browser of what is theirs alone and of their shares of what
they have in common (PSS, Linux), in a further round, and of it what the open page takes before a picture is added; of
the others the resident memory of the process.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import psutil
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / 'sdakd/pretrained/x4plus_rrdbnet_1_8.safetensors'
PICTURES = {'256x256': (256, 256), '1280x800': (800, 1280)}
ORT = """import json, sys, time
import cv2, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])
image = cv2.imread(sys.argv[2])[..., ::-1].transpose(2, 0, 1)[None].astype('float32') / 255
times = []
for _ in range(int(sys.argv[4])):
    begun = time.perf_counter()
    session.run(None, {'input': image})
    times.append(time.perf_counter() - begun)
print(json.dumps(times))
"""
FLAGS = (
    'headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking',
    'disable-component-update', 'disable-sync',
)  # fmt: skip


class Peak:
    """The largest sum of the PSS of a process and all of its descendants while it lasts, in MiB."""

    def __init__(self, process: int) -> None:
        self.process, self.most, self.ended = psutil.Process(process), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def now(self) -> float:
        total = 0
        for each in (self.process, *self.process.children(recursive=True)):
            try:
                total += each.memory_full_info().pss
            except psutil.Error:
                continue  # it has ended
        return total / 2**20

    def watch(self) -> None:
        while not self.ended.wait(0.2):
            self.most = max(self.most, self.now())

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def page(site: Path, pictures: dict[str, Path], work: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Seconds, peak and what the idle page takes, by picture; a browser each."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = {}
    for name, picture in pictures.items():
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium') or shutil.which('google-chrome')
        for flag in (*FLAGS, f'user-data-dir={work / f"profile_{name}"}'):
            options.add_argument(f'--{flag}')
        driver = webdriver.Chrome(options=options, service=Service(shutil.which('chromedriver')))
        try:
            driver.get(f'http://127.0.0.1:{server.server_port}/')

            def until(script: str, driver=driver) -> None:
                while not driver.execute_script(f'return {script}'):
                    time.sleep(0.01)

            until('document.documentElement.dataset.engine')
            threads = driver.execute_script('return document.documentElement.dataset.threads')
            print(f'page: {threads} threads', file=sys.stderr)
            time.sleep(1)
            times = []

            def enlarge(driver=driver, picture=picture, until=until, times=times) -> None:
                begun = time.perf_counter()
                driver.find_element('id', 'files').send_keys(str(picture))
                until(f"document.querySelectorAll('#queue [data-state=done]').length === {len(times) + 1}")
                times.append(time.perf_counter() - begun)

            peak = Peak(driver.service.process.pid)
            idle = peak.now()
            for _ in range(rounds + 1):
                enlarge()
            with peak:
                enlarge()
            found[name] = statistics.median(times[1 : rounds + 1]), peak.most, idle
        finally:
            driver.quit()
    server.shutdown()
    return found


def process(command: list[str], threads: int) -> tuple[str, float]:
    """What a command printed, and its peak of resident memory in MiB."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    with tempfile.TemporaryFile('w+', encoding='utf-8') as out:
        started = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            raise SystemExit(f'{" ".join(command)}: status {started.returncode}')
        out.seek(0)
        return out.read(), usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('-m', '--model', type=Path, default=MODEL)
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of ONNX Runtime and sdakd upscale')
    parser.add_argument('--pictures', nargs='+', choices=PICTURES, default=list(PICTURES))
    parser.add_argument('--rounds', type=int, default=3)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    pictures = {}
    photo = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    for name in arguments.pictures:
        height, width = PICTURES[name]
        pictures[name] = work / name / 'photo.png'
        pictures[name].parent.mkdir()
        large = photo if height <= 512 else cv2.resize(photo, (1280, 1280), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(pictures[name]), large[:height, 60 : 60 + width] if height <= 512 else large[:height, :width])
    sdakd = [sys.executable, '-m', 'sdakd.cli']
    process([*sdakd, 'export', '--to', 'web', '-m', str(arguments.model), '-o', str(work / 'site')], arguments.threads)
    (entry,) = json.loads((work / 'site/models.json').read_text(encoding='utf-8'))
    print('| picture | what computes | s | ratio | peak memory, MiB |\n|---|---|--:|--:|--:|')
    of_page = page(work / 'site', pictures, work, arguments.rounds)
    for name, picture in pictures.items():
        graph, rounds = str(work / 'site' / entry['file']), str(arguments.rounds + 1)
        printed, memory = process([sys.executable, '-c', ORT, graph, str(picture), str(arguments.threads), rounds], 1)
        reference = statistics.median(json.loads(printed)[1:])
        print(f'| {name} | ONNX Runtime | {reference:.2f} | 1.0 | {memory:.0f} |')
        seconds, peak, idle = of_page[name]
        print(f'| | the page | {seconds:.2f} | {seconds / reference:.1f} | {peak:.0f}, idle {idle:.0f} |')
        command = [*sdakd, 'upscale', '-i', str(picture), '-o', str(work / 'out'), '-m', str(arguments.model)]
        runs = [process([*command, '--overwrite'], arguments.threads) for _ in range(arguments.rounds)]
        seconds = statistics.median(float(re.search(r': ([\d.]+) s,', printed)[1]) for printed, _ in runs)
        memory = max(memory for _, memory in runs)
        print(f'| | sdakd upscale | {seconds:.1f} | {seconds / reference:.1f} | {memory:.0f} |', flush=True)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__':
    main()
