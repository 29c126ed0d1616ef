"""The cache of a teacher's answers: what it holds, what it refuses, and that a run reads it instead of the teacher."""

import copy
import json
import random
import shutil

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model

from sdakd import cli
from sdakd.compat import UserError
from sdakd_data import cache_filling
from sdakd_data.cache_filling import FeatureTaps, answer

TAPS = ('body.3', 'body.5', 'body.7', 'body.9')


@pytest.fixture
def options(world):
    """A run whose stages compare images, and feature maps where a test adds ``feature``."""
    found = world.options()
    found['teacher']['cache'] = str(world.root / 'cache')
    found['train']['output_opt'] = {'type': 'L1Loss', 'loss_weight': 0.5, 'reduction': 'mean'}
    found['train']['stages'] = {'distillation': {'iters': 6, 'lr_g': 1e-3, 'terms': ['pixel', 'output']}}
    del found['network_d'], found['val'], found['datasets']['val'], found['train']['gan_opt']
    return found


def with_maps(options):
    options['train']['stages']['distillation']['terms'].append('feature')
    options['datasets']['train'].update(use_hflip=False, use_rot=False)
    return options


def counted(model):
    """A list that grows with every forward pass of the model's teacher."""
    calls = []
    model.teachers['teacher'].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def start(options, world, parse, monkeypatch):
    """The parsed options, the model and the shapes of the inputs that filling the cache runs the teacher on."""
    runs, original = [], cache_filling.answer
    monkeypatch.setattr(cache_filling, 'answer', lambda *a: runs.append(a[2].shape) or original(*a))
    opt = parse(world.write(options), world.root)
    model = build_model(opt)
    monkeypatch.setattr(cache_filling, 'answer', original)
    return opt, model, runs


def step(model, batch, iteration=1):
    model.update_learning_rate(iteration)
    model.feed_data(batch)
    model.optimize_parameters(iteration)
    return {k: v for k, v in model.get_current_log().items() if k != 'stage'}


def batch_of(dataset, numbers, seed=0):
    random.seed(seed)
    return torch.utils.data.default_collate([dataset[number] for number in numbers])


def whole_answers(world, path):
    """The teacher's image and maps for a whole input image, in float64, by its own layers one after another."""
    teacher = copy.deepcopy(world.teacher).double()
    rgb = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    lq = torch.from_numpy(rgb).permute(2, 0, 1)[None].double() / 255
    maps, values = {}, lq
    with torch.no_grad():
        for number, layer in enumerate(teacher.body):
            values = layer(values)
            maps[f'body.{number}'] = values.clone()
        image = teacher.upsampler(values) + torch.nn.functional.interpolate(lq, scale_factor=4, mode='nearest')
    return lq, image, maps


def find(crop, whole):
    """Where a crop lies in a whole image, by comparing it everywhere."""
    size = crop.shape[-1]
    windows = whole.unfold(2, size, 1).unfold(3, size, 1)[0]  # (3, rows, columns, size, size)
    same = (windows - crop[0][:, None, None]).abs().amax((0, 3, 4)) < 1e-6
    assert same.sum() == 1
    return (int(v) for v in same.nonzero()[0])


@pytest.mark.parametrize('kind', ['PairedImageDataset', 'RealESRGANPairedDataset'])
@pytest.mark.parametrize('storage', ['disk', 'lmdb'])
def test_pairs_are_the_very_crops_of_the_plain_data_set(options, world, parse, monkeypatch, kind, storage):
    train = options['datasets']['train']
    train['type'] = kind
    if storage == 'lmdb':
        for side, folder in (('gt', 'HR'), ('lq', 'LRx4')):
            cli.main(['prepare', 'lmdb', '-i', str(world.root / folder), '-o', str(world.root / f'{side}.lmdb')])
            train[f'dataroot_{side}'] = str(world.root / f'{side}.lmdb')
        train['io_backend'] = {'type': 'lmdb'}
    if kind == 'RealESRGANPairedDataset':
        options['model_type'], options['high_order_degradation'] = 'SDAKDRealESRGANModel', False
    opt, model, runs = start(options, world, parse, monkeypatch)
    assert len(runs) == 8
    cached = build_dataset(opt['datasets']['train'])
    assert type(cached).__name__ == 'CachedPairedDataset'
    random.seed(7)
    ours, after = [cached[number % 8] for number in range(40)], random.random()
    plain = build_dataset({**train, 'scale': 4, 'phase': 'train'})
    random.seed(7)
    for number, item in enumerate(ours):
        other = plain[number % 8]
        assert other.keys() == item.keys() - {'answer//teacher'}
        assert all(torch.equal(item[key], other[key]) for key in ('lq', 'gt'))
        assert all(item[key] == other[key] for key in ('lq_path', 'gt_path'))
    assert random.random() == after


@pytest.mark.parametrize('storage', ['disk', 'lmdb'])
def test_the_second_start_decodes_one_pair(options, world, parse, monkeypatch, storage):
    """None to see whether images are good or to find the answers to them; a changed one is decoded alone."""
    if storage == 'lmdb':
        for side, folder in (('gt', 'HR'), ('lq', 'LRx4')):
            cli.main(['prepare', 'lmdb', '-i', str(world.root / folder), '-o', str(world.root / f'{side}.lmdb')])
            options['datasets']['train'][f'dataroot_{side}'] = str(world.root / f'{side}.lmdb')
        options['datasets']['train']['io_backend'] = {'type': 'lmdb'}
    decodings, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda *arguments: decodings.append(1) or decode(*arguments))
    *_, runs = start(options, world, parse, monkeypatch)
    # all images, those that the teacher answers to, and the pair on which the loader is tried
    assert len(decodings) == 16 + 8 + 2 and len(runs) == 8
    *_, runs = start(options, world, parse, monkeypatch)
    assert len(decodings) == 26 + 2 and not runs
    if storage == 'disk':
        image = cv2.imread(str(world.root / 'LRx4/coffee0.png'))
        cv2.imwrite(str(world.root / 'LRx4/coffee0.png'), image[::-1])
        *_, runs = start(options, world, parse, monkeypatch)
        assert len(runs) == 1 and 28 + 2 + 2 <= len(decodings) <= 28 + 2 + 4


def test_answers_are_crops_and_flips_of_those_to_the_whole_image(options, world, parse, monkeypatch):
    """Every orientation is undone, the crop found in the whole image, and the answer compared there."""
    opt, _, _ = start(options, world, parse, monkeypatch)
    dataset = build_dataset(opt['datasets']['train'])
    random.seed(1)
    orientations = set()
    for number in range(24):
        item = dataset[number % 8]
        lq, image, _ = whole_answers(world, item['lq_path'])
        for turns in range(8):

            def undo(values, turns=turns):
                values = values[None].double()
                values = values.mT if turns & 4 else values
                return values.flip([axis for axis, bit in ((3, 1), (2, 2)) if turns & bit])

            try:
                top, left = find(undo(item['lq']), lq)
            except AssertionError:
                continue
            orientations.add(turns)
            expected = image[..., 4 * top : 4 * top + 32, 4 * left : 4 * left + 32]
            # float16 keeps 11 bits
            assert torch.allclose(undo(item['answer//teacher']), expected, rtol=2**-11, atol=1e-5)
            break
        else:
            raise AssertionError('no orientation fits')
    assert len(orientations) == 8


def test_maps_are_crops_of_those_of_the_whole_image(options, world, parse, monkeypatch):
    opt, _, _ = start(with_maps(options), world, parse, monkeypatch)
    dataset = build_dataset(opt['datasets']['train'])
    for number in range(8):
        item = dataset[number]
        lq, image, maps = whole_answers(world, item['lq_path'])
        top, left = find(item['lq'][None].double(), lq)
        expected = image[..., 4 * top : 4 * top + 32, 4 * left : 4 * left + 32]
        assert torch.allclose(item['answer//teacher'][None].double(), expected, rtol=2**-11, atol=1e-5)
        for tap in TAPS:
            expected = maps[tap][..., top : top + 8, left : left + 8]
            assert torch.allclose(item[f'answer/{tap}/teacher'][None].double(), expected, rtol=2**-11, atol=1e-5)


def test_steps_with_the_cache_are_those_with_the_whole_answers(options, world, parse, monkeypatch):
    """Three steps, their losses written out from answers in float64, and no forward pass of the teacher."""
    opt, model, _ = start(with_maps(options), world, parse, monkeypatch)
    dataset, calls = build_dataset(opt['datasets']['train']), counted(model)
    adapter = next(player.bare for player in model.players if player.name == 'adapter')
    for iteration in range(1, 4):
        batch = batch_of(dataset, (iteration, iteration + 4), seed=iteration)
        student, bank = copy.deepcopy(model.bare_student), copy.deepcopy(adapter)
        for module in student.modules():
            module._forward_hooks.clear()
        tapped, images, theirs = FeatureTaps(student, TAPS), [], {tap: [] for tap in TAPS}
        for number in range(2):
            lq, image, maps = whole_answers(world, batch['lq_path'][number])
            top, left = find(batch['lq'][number : number + 1].double(), lq)
            images.append(image[..., 4 * top : 4 * top + 32, 4 * left : 4 * left + 32])
            for tap in TAPS:
                theirs[tap].append(maps[tap][..., top : top + 8, left : left + 8])
        with torch.no_grad(), tapped:
            # answers to whole images have context: no border is left out
            output = (student(batch['lq']).double() - torch.cat(images)).abs().mean() * 0.5
            adapted = bank(tapped.pop())
        log = step(model, batch, iteration)
        assert log['l_g_output'] == pytest.approx(float(output), rel=1e-3)
        if iteration == 1:  # later ones divide by the variance of several batches
            parts = []
            for tap in TAPS:
                target = torch.cat(theirs[tap])
                parts.append((adapted[tap].double() - target).square().mean() / target.var(unbiased=False))
            assert log['l_g_feature'] == pytest.approx(0.1 * float(sum(parts) / len(parts)), rel=5e-3)
    assert not calls


def test_maps_that_no_cache_has_come_from_the_teacher_itself(options, world, parse, monkeypatch):
    """As for a term that does not say which taps it compares."""
    from sdakd_models.terms import Context

    opt, model, _ = start(with_maps(options), world, parse, monkeypatch)
    batch, calls = batch_of(build_dataset(opt['datasets']['train']), (0, 1)), counted(model)
    model.feed_data({key: value for key, value in batch.items() if not key.startswith('answer/body')})
    assert torch.equal(Context(model, with_features=False).image('teacher'), batch['answer//teacher']) and not calls
    context = Context(model, with_features=True)
    with torch.no_grad():
        expected = torch.nn.Sequential(*world.teacher.body[:4])(batch['lq'])
    assert torch.allclose(context.features('teacher')['body.3'], expected, atol=1e-6)
    context.image('teacher')
    assert len(calls) == 1


def test_a_second_run_computes_nothing(options, world, parse, monkeypatch):
    _, _, first = start(options, world, parse, monkeypatch)
    files = {path: path.stat().st_mtime_ns for path in (world.root / 'cache').rglob('*.npy')}
    assert len(first) == len(files) == 8
    opt, model, second = start(options, world, parse, monkeypatch)
    assert not second and files == {path: path.stat().st_mtime_ns for path in files}
    calls = counted(model)
    for iteration in range(1, 5):
        step(model, batch_of(build_dataset(opt['datasets']['train']), (0, 1)), iteration)
    assert not calls
    step(model, {key: value for key, value in batch_of(build_dataset(opt['datasets']['train']), (0, 1)).items()
                 if not key.startswith('answer')}, 5)  # fmt: skip
    assert calls  # without the answers, the hook would have seen it


def test_further_taps_are_added(options, world, parse, monkeypatch):
    start(options, world, parse, monkeypatch)
    images = {path: path.stat().st_mtime_ns for path in (world.root / 'cache/images').iterdir()}
    _, _, runs = start(with_maps(options), world, parse, monkeypatch)
    assert len(runs) == 8 and {path: path.stat().st_mtime_ns for path in images} == images
    assert sorted(path.name for path in (world.root / 'cache/maps').iterdir()) == sorted(TAPS)
    manifest = json.loads((world.root / 'cache/cache.json').read_text())
    assert manifest['taps'] == sorted(TAPS) and manifest['scale'] == 4 and manifest['format'] == 1


def test_an_interrupted_filling_goes_on(options, world, parse, monkeypatch):
    original = cache_filling.answer
    runs = []

    def interrupted(*arguments):
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(1)
        return original(*arguments)

    monkeypatch.setattr(cache_filling, 'answer', interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_model(parse(world.write(options), world.root))
    made = {path: path.read_bytes() for path in (world.root / 'cache/images').iterdir()}
    assert len(made) == 3
    monkeypatch.setattr(cache_filling, 'answer', original)
    _, _, rest = start(options, world, parse, monkeypatch)
    assert len(rest) == 5 and all(path.read_bytes() == content for path, content in made.items())
    whole = {path.name: path.read_bytes() for path in (world.root / 'cache/images').iterdir()}
    options['teacher']['cache'] = str(world.root / 'uninterrupted')
    start(options, world, parse, monkeypatch)
    assert whole == {path.name: path.read_bytes() for path in (world.root / 'uninterrupted/images').iterdir()}


def another_teacher(world):
    torch.manual_seed(8)
    torch.save({'params': type(world.teacher)(num_feat=8, num_conv=4).state_dict()}, world.root / 'teacher.pth')


def other_images(world):
    for path in (world.root / 'LRx4').iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))


def cut_entry(world):
    path = sorted((world.root / 'cache/images').iterdir())[2]
    path.write_bytes(path.read_bytes()[:-100])


def entry_of_another_size(world):
    path = sorted((world.root / 'cache/images').iterdir())[2]
    np.save(path, np.zeros((8, 8, 3), np.float16))


def broken_manifest(world):
    (world.root / 'cache/cache.json').write_text('{')


def another_format(world):
    path = world.root / 'cache/cache.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 99}))


@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [
        (another_teacher, r'teacher:cache: .*cache holds the answers of another teacher'),
        (other_images, r'teacher:cache: .*cache holds answers to other images and none to those of .*LRx4'),
        (cut_entry, r'teacher:cache: the entry .*images/[0-9a-f]{64}.npy is missing or damaged; delete it'),
        (entry_of_another_size, r'the entry .*images/[0-9a-f]{64}.npy does not fit its image .*LRx4.*.png'),
        (broken_manifest, r'its cache.json is missing or damaged'),
        (another_format, r'has the format 99 of another version'),
    ],
)
def test_a_cache_that_is_not_this_runs_is_refused(options, world, parse, monkeypatch, damage, sentence):
    start(options, world, parse, monkeypatch)
    damage(world)
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob('*')}
    with pytest.raises(UserError, match=sentence):
        parse(world.write(options), world.root)
    after = {path: path.stat().st_mtime_ns for path in world.root.rglob('*')}
    assert {path for path in after if before.get(path) != after[path]} <= {world.root / 'run.yml', world.root}


def flips(options, _whole):
    with_maps(options)['datasets']['train']['use_rot'] = True


def mean(options, _whole):
    options['datasets']['train'].update(mean=[0.5] * 3, std=[0.5] * 3)


def learns(options, whole):
    options['teacher']['cotrain'] = {'metric': 'psnr'}
    options['val'], options['datasets']['val'] = whole['val'], whole['datasets']['val']


def folder_of_others(options, _whole):
    options['teacher']['cache'] = options['datasets']['train']['dataroot_lq']


def one_folder_for_two(options, _whole):
    options['teachers'] = {'second': dict(options['teacher'])}
    options['train']['stages']['distillation']['terms'].append('omgd')
    layers = {'teacher': [], 'second': []}
    options['train']['omgd_opt'] = {'type': 'OMGDLoss', 'teachers': list(layers), 'layers': layers}


def degraded_in_training(options, whole):
    options.update(whole['degradation'], model_type='SDAKDRealESRGANModel')


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (flips, r"teacher:cache: the term 'feature' compares feature maps, and those of a flipped image are not"),
        (mean, r'datasets:train:mean: this key and teacher:cache exclude each other'),
        (learns, r'teacher:cache: a teacher that learns .cotrain. has no lasting answers'),
        (folder_of_others, r"LRx4 is no folder of a teacher's answers"),
        (one_folder_for_two, r'teachers:second:cache: .*cache is the folder of teacher:cache'),
        (degraded_in_training, r'teacher:cache: only a pair that comes again has an answer to keep'),
    ],
)
def test_what_a_cache_cannot_do_is_refused(options, world, parse, change, sentence):
    change(options, world.options() | {'degradation': world.degradation | {'gt_size': 32}})
    with pytest.raises(UserError, match=sentence):
        parse(world.write(options), world.root)
    assert not (world.root / 'cache').exists() and not (world.root / 'experiments').exists()


def test_a_full_disk_is_seen_in_advance(options, world, parse, monkeypatch):
    needed = 8 * 128 * 64 * 3 * 2  # eight images of 128 x 64 pixels, three channels, two bytes
    for free, good in ((needed, True), (needed - 1, False)):
        usage = type('Usage', (), {'free': free})
        monkeypatch.setattr('sdakd_models.checks.cache.shutil.disk_usage', lambda _path, usage=usage: usage)
        if good:
            parse(world.write(options), world.root)
        else:
            with pytest.raises(UserError, match='and 0.0 GB are free; name a folder on a larger disk'):
                parse(world.write(options), world.root)


def test_tiles_equal_the_whole_image(monkeypatch):
    """With context as wide as the network reaches, tiles change nothing; sides that nothing divides."""
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    monkeypatch.setattr(cache_filling, 'LARGEST', 20 * 20)
    monkeypatch.setattr(cache_filling, 'TILE', 12)
    monkeypatch.setattr(cache_filling, 'CONTEXT', 8)
    for network, taps, scale in (
        (SRVGGNetCompact(num_feat=4, num_conv=3), ['body.3', 'body.5:input'], 4),
        (RRDBNet(3, 3, scale=2, num_feat=4, num_block=0, num_grow_ch=2), ['conv_up2'], 2),
    ):
        network = network.eval()
        image = torch.rand(1, 3, 37, 50)
        tapped = FeatureTaps(network, taps)
        found = answer(network, tapped, image)
        padded = torch.nn.functional.pad(image, (0, 0, 0, 1), mode='reflect') if scale == 2 else image
        with torch.no_grad(), tapped:
            expected = {'': network(padded)}
        expected |= tapped.pop()
        assert found.keys() == {'', *taps}
        for name, values in found.items():
            k = expected[name].shape[-1] // padded.shape[-1]
            assert values.shape == (37 * k, 50 * k, expected[name].shape[1]) and values.dtype == np.float16
            whole = expected[name][0, :, : 37 * k, : 50 * k].permute(1, 2, 0).numpy()
            assert np.allclose(values, whole, rtol=2**-10, atol=1e-5)


def test_values_beyond_float16_are_refused(options, world, parse, monkeypatch):
    state = world.teacher.state_dict()
    state['body.10.bias'] += 1e6
    torch.save({'params': state}, world.root / 'teacher.pth')
    with pytest.raises(UserError, match='teacher:cache: the teacher has values beyond float16'):
        build_model(parse(world.write(options), world.root))


def test_a_relative_folder_is_absolute_in_the_run(options, world, parse, monkeypatch):
    monkeypatch.chdir(world.root)
    options['teacher']['cache'] = 'answers'
    assert parse(world.write(options), world.root)['teacher']['cache'] == str(world.root / 'answers')


def test_what_another_process_has_made_meanwhile_is_left_out(options, world, parse, monkeypatch):
    start(options, world, parse, monkeypatch)
    options['teacher']['cache'] = str(world.root / 'second')
    original, runs = cache_filling.answer, []

    def overtaken(*arguments):
        runs.append(1)
        shutil.copytree(world.root / 'cache', world.root / 'second', dirs_exist_ok=True)
        return original(*arguments)

    monkeypatch.setattr(cache_filling, 'answer', overtaken)
    state = random.getstate()
    opt = parse(world.write(options), world.root)
    random.setstate(state)
    build_model(opt)
    assert len(runs) == 1 and random.getstate() == state
