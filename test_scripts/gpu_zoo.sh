#!/usr/bin/env bash
# Trains students of options/zoo on a machine with a GPU and no network, in minutes, from one folder that travels there.
#
#   test_scripts/gpu_zoo.sh pack CARRY          # here: collects weights and as many photographs as fit into 54 MiB
#   test_scripts/gpu_zoo.sh run CARRY OUT       # there: times a step of each stage, trains, leaves checkpoints and logs in OUT
#   test_scripts/gpu_zoo.sh bench CARRY OUT     # there: what steps and students cost, as docs/performance.md asks; 9 minutes
#
# Flags of `run`, after OUT:
#   --minutes 8            time for the whole command; at its end runs are stopped at their last checkpoint
#   --opt FILE [FILE ...]  option files, trained side by side (default: the 1/4-width student)
#   --iters N              iterations of the longest run (default: what the timing says fits)
#   --no-benchmark         train at once
#
# The folder holds weights/ (RealESRGAN_x4plus.pth, vgg16.pth), train/ and train.txt (photographs and their list), wheels/
# (what the other machine's Python lacks: put them there before), and start/NAME.safetensors, where there is a student to go
# on from. On a GPU the runs are in bfloat16 and channels-last. A try on a CPU: --minutes 0.2.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}

die() { echo "Error: $*" >&2; exit 2; }

pack() {
  local carry=$1
  mkdir -p "$carry"/{weights,train,wheels,start}
  "$PYTHON" - "$ROOT" "$carry" <<'PY'
import io, pathlib, shutil, sys
import torch
from PIL import Image

root, carry = map(pathlib.Path, sys.argv[1:])
room = 54 * 2**20  # beside the checkout, which travels too
for source, name, last in (('RealESRGAN_x4plus', 'RealESRGAN_x4plus', None), ('vgg16-397923af', 'vgg16', 21)):
    state = torch.load(root / f'experiments/pretrained_models/{source}.pth', map_location='cpu', weights_only=True)
    state = state.get('params_ema', state)
    if last is not None:  # the layers up to relu4_3
        state = {k: v for k, v in state.items() if k.startswith('features.') and int(k.split('.')[1]) <= last}
    torch.save({key: value.half() for key, value in state.items()}, carry / f'weights/{name}.pth')
for name in ('x4plus_rrdbnet_1_4', 'x4plus_rrdbnet_1_8', 'x4plus_srvgg_64x16'):
    if (root / f'sdakd/pretrained/{name}.safetensors').is_file():
        shutil.copy(root / f'sdakd/pretrained/{name}.safetensors', carry / 'start')
room -= sum(file.stat().st_size for file in carry.rglob('*') if file.is_file() and file.parent.name != 'train')
names = (root / 'datasets/zoo/train.txt').read_text().split()
names.sort(key=lambda name: name[::-1])  # mixes the sources, in the same way every time
packed = []
for name in names:
    stream = io.BytesIO()
    Image.open(root / 'datasets/zoo/train' / name).convert('RGB').save(stream, 'JPEG', quality=90)
    room -= stream.tell()
    if room < 0:
        break
    name = f'{pathlib.Path(name).stem}.jpg'
    (carry / 'train' / name).write_bytes(stream.getvalue())
    packed.append(name)
(carry / 'train.txt').write_text('\n'.join(packed) + '\n')
print(f'{len(packed)} of {len(names)} photographs')
PY
  du -sh "$carry"
}

install() {  # what the other machine's Python lacks
  local carry=$1 work=$2
  if compgen -G "$carry/wheels/*.whl" >/dev/null && ! "$PYTHON" -c 'import basicsr, msgspec, lmdb' 2>/dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$carry"/wheels/*.whl
    export PYTHONPATH=$work/site
  fi
  export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  "$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
}

bench() {
  local carry out work gpu=()
  carry=$(cd "$1" && pwd); mkdir -p "$2"; out=$(cd "$2" && pwd); work=${WORK:-$(mktemp -d)}; shift 2
  install "$carry" "$work"
  local steps=(-t "$carry/weights/RealESRGAN_x4plus.pth" -d "$carry/train" --batch "${BATCH:-12}" --gt_size "${CROP:-256}")
  steps+=(--rounds "${ROUNDS:-10}" --precisions fp32 tf32 bf16 --reuse 1 4 --stages adversarial)
  cd "$work"
  # VGG19 gets random weights, which cost the same
  timeout "${LIMIT:-170}" "$PYTHON" -m sdakd.cli bench train -opt "$ROOT/options/sdakd_realesrgan_x4.yml" "${steps[@]}" \
    --breakdown -o "$out/eager" || true
  timeout "${LIMIT:-170}" "$PYTHON" -m sdakd.cli bench train -opt "$ROOT/options/sdakd_realesrgan_x4.yml" "${steps[@]}" \
    --compile -o "$out/compiled" || true
  timeout 60 "$PYTHON" -m sdakd.cli bench -m random:RRDBNet random:RRDBNet:1/4 random:RRDBNet:1/8 --size 256 --rounds 5 \
    -o "$out/inference" || true
  # how busy the GPU is in a training with its loader: once a second
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader -l 1 >"$out/utilization.csv" &
    gpu=($!)
  fi
  timeout "${LIMIT:-120}" "$PYTHON" -m sdakd.cli train -opt "$ROOT/options/zoo/x4plus_rrdbnet_1_4.yml" --force_yml \
    datasets:train:dataroot_gt="$carry/train" datasets:train:meta_info="$carry/train.txt" train:precision=bf16 \
    datasets:train:num_worker_per_gpu="${WORKERS:-8}" teacher:weights="$carry/weights/RealESRGAN_x4plus.pth" \
    train:imitation_opt:weights="$carry/weights/vgg16.pth" logger:use_tb_logger=false logger:print_freq=20 \
    train:stages:supervised:iters=20 >"$out/training.log" 2>&1 || true
  kill "${gpu[@]}" 2>/dev/null || true
  grep -E 'iter: ' "$out/training.log" | tail -3 | cut -c1-300 || tail -3 "$out/training.log"
}

run() {
  local carry out minutes=8 iters='' benchmark=1 options=()
  carry=$(cd "$1" && pwd); mkdir -p "$2"; out=$(cd "$2" && pwd); shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      --minutes) minutes=$2; shift 2 ;;
      --iters) iters=$2; shift 2 ;;
      --no-benchmark) benchmark=0; shift ;;
      --opt) shift; while [ $# -gt 0 ] && [[ $1 != --* ]]; do options+=("$(realpath "$1")"); shift; done ;;
      *) die "$1: unknown flag; see the head of $0." ;;
    esac
  done
  [ ${#options[@]} -gt 0 ] || options=("$ROOT/options/zoo/x4plus_rrdbnet_1_4.yml")
  local end=$(( $(date +%s) + $("$PYTHON" -c "print(round($minutes * 60))") ))
  local work=${WORK:-$(mktemp -d)}
  mkdir -p "$work"
  # processes that share the GPU do not wait for each other's small kernels
  if command -v nvidia-cuda-mps-control >/dev/null && [ ${#options[@]} -gt 1 ]; then
    export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps; mkdir -p "$work/mps"
    nvidia-cuda-mps-control -d || true
  fi
  install "$carry" "$work"
  local precision
  precision=$("$PYTHON" -c 'import torch; print("bf16" if torch.cuda.is_available() else "fp32")')

  local common=(
    datasets:train:dataroot_gt="$carry/train" datasets:train:meta_info="$carry/train.txt"
    teacher:weights="$carry/weights/RealESRGAN_x4plus.pth" logger:use_tb_logger=false
  )
  if [ "$benchmark" = 1 ]; then
    timeout 120 "$PYTHON" -m sdakd.cli bench train -opt "${options[0]}" -o "$out" --batch "${BATCH:-8}" \
      --rounds "${BENCHMARK_ROUNDS:-40}" --precisions fp32 bf16 --breakdown || true
  fi
  if [ -z "$iters" ]; then
    # seconds of the slowest stage; the runs share the machine, so that each may take as many times as long
    local step
    step=$("$PYTHON" - "$out/results.json" "$precision" <<'END' 2>/dev/null || echo 0.1
import json, sys
rows = json.load(open(sys.argv[1]))['bench_train']['rows']
stages = [row for row in rows if row['precision'] == sys.argv[2] and ' ' not in row['step'] and row['step'] != 'BasicSR']
print(max(row['median_ms'] for row in stages if row['median_ms']) / 1000)
END
    )
    iters=$("$PYTHON" -c "print(max(10, int(0.85 * ($end - $(date +%s)) / $step / ${#options[@]})))")
  fi
  local option name pids=() changes
  for option in "${options[@]}"; do
    name=$(basename "$option" .yml)
    # the file's stages, in proportion
    mapfile -t changes < <("$PYTHON" - "$option" "$iters" "$carry" <<'PY'
import sys
from sdakd import compat
compat.import_basicsr()
from sdakd_models.reader import read_run
option, iters, carry = sys.argv[1:]
train = read_run(option)['train']
for block in ('imitation_opt', 'perceptual_opt'):
    if train.get(block):
        print(f'train:{block}:weights={carry}/weights/vgg16.pth')
total = sum(stage['iters'] for stage in train['stages'].values())
for name, stage in train['stages'].items():
    print(f'train:stages:{name}:iters={max(1, round(int(iters) * stage["iters"] / total))}')
PY
    )
    changes+=("${common[@]}" train:precision=$precision)
    if [ -f "$carry/start/$name.safetensors" ]; then
      changes+=(path:pretrain_network_g="$carry/start/$name.safetensors")
    fi
    (cd "$work" && exec "$PYTHON" -m sdakd.cli train -opt "$option" --auto_resume --force_yml "${changes[@]}") \
      >"$out/$name.log" 2>&1 &
    pids+=($!)
  done
  echo "training ${#options[@]} option file(s), $iters iterations, until $(date -d @$end +%T)"
  while [ "$(date +%s)" -lt "$end" ] && kill -0 "${pids[@]}" 2>/dev/null; do sleep 1; done
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  local models newest
  for option in "${options[@]}"; do
    name=$(basename "$option" .yml)
    models=$work/experiments/$(sed -n 's/^name: *\([^ ]*\).*/\1/p' "$option")/models
    newest=$(ls -t "$models"/net_g_*.pth 2>/dev/null | head -1 || true)
    if [ -n "$newest" ]; then cp "$newest" "$out/$name.pth"; else echo "$name: no checkpoint"; fi
    grep -E 'iter: ' "$out/$name.log" | tail -1 | cut -c1-300 || tail -3 "$out/$name.log"
  done
}

case ${1:-} in
  pack) [ $# -eq 2 ] || die 'pack CARRY'; pack "$2" ;;
  bench) [ $# -eq 3 ] || die 'bench CARRY OUT'; bench "$2" "$3" ;;
  run) [ $# -ge 3 ] || die 'run CARRY OUT [flags]'; shift; run "$@" ;;
  *) sed -n '2,19p' "$0"; exit 2 ;;
esac
