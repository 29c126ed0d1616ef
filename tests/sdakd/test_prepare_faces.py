"""`sdakd prepare faces`: its alignment against formulas written out here, the whole command on small pictures."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch

from sdakd import cli, compat
from sdakd.commands import upscale
from sdakd.commands.prepare import alignment
from sdakd.compat import UserError

compat.import_basicsr()

# eyes, nose and corners of the mouth in facexlib's FFHQ-like face of 512 x 512 pixels
POINTS = [
    [192.98138, 239.94708],
    [318.90277, 240.1936],
    [256.63416, 314.01935],
    [201.26117, 371.41043],
    [313.08905, 371.15118],
]
PEOPLE = {'a1': 'ann', 'a2': 'ann', 'b1': 'bob', 'b2': 'bob', 'c1': 'cy', 'd1': 'di'}


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def run(*words):
    return cli.main(['prepare', 'faces', *(str(word) for word in words), '--workers', '1'])


def made(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*.png'))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob('*')) if path.is_file()}


def picture(height, width, y, x):
    """A smooth picture at any points, float, three channels; no wave is shorter than 40 pixels of ``width`` 512."""
    waves = [np.sin(6.28 * (3 * x / width + c)) * np.cos(6.28 * (2 * y / height - c)) for c in (0.1, 0.4, 0.7)]
    return 127 + 100 * np.stack(waves, -1)


def photograph(height, width):
    y, x = np.mgrid[:height, :width].astype(float)
    return picture(height, width, y, x).round().astype(np.uint8)


@pytest.fixture
def faces(tmp_path):
    """Six aligned faces of 48 x 48 pixels of four people, and lists of them."""
    for number, name in enumerate(PEOPLE):
        save(tmp_path / 'in' / f'{name}.png', np.roll(photograph(48, 48), 5 * number, 1))
    lines = ''.join(f'{name}.png,{who}\n' for name, who in PEOPLE.items())
    (tmp_path / 'people.csv').write_text('name,identity\n' + lines)
    parts = {'ann': 'train', 'bob': 'validation', 'cy': 'train', 'di': 'test'}
    (tmp_path / 'parts.txt').write_text(''.join(f'{name}.jpg {who} {parts[who]}\n' for name, who in PEOPLE.items()))
    return tmp_path


# ---------------------------------------------- alignment ------------------------------------------------------------


def umeyama(source, target):
    """The least-squares similarity of Umeyama (1991), equations 40 to 43, as a matrix (2, 3)."""
    source, target = np.asarray(source, float), np.asarray(target, float)
    centre_s, centre_t = source.mean(0), target.mean(0)
    u, singular, vt = np.linalg.svd((target - centre_t).T @ (source - centre_s) / len(source))
    sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(singular) @ sign) / ((source - centre_s) ** 2).sum(1).mean()
    return np.c_[scale * rotation, centre_t - scale * rotation @ centre_s]


def landmarks_of(degrees, side, centre):
    """Landmarks of a face whose square has this angle, side and centre in the photograph."""
    angle, scale = np.deg2rad(degrees), side / 512
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (np.array(POINTS) - 256) @ turn.T + centre


@pytest.mark.parametrize('size', [32, 256, 1024])
@pytest.mark.parametrize('degrees, side', [(0, 300), (25, 1100), (-170, 64)])
def test_the_similarity_is_that_of_least_squares(size, degrees, side):
    landmarks = landmarks_of(degrees, side, (412.5, 77))
    matrix = alignment.similarity(landmarks, size)
    np.testing.assert_allclose(matrix, umeyama(landmarks, np.array(POINTS) * size / 512), atol=1e-3 * size / 512)
    assert alignment.face_side(matrix, size) == pytest.approx(side, rel=1e-4)


def test_the_crop_is_facexlibs(monkeypatch):
    """Where nothing is shrunk and the face lies inside, facexlib's helper cuts out the same pixels."""
    from facexlib.utils import face_restoration_helper as facexlib

    monkeypatch.setattr(facexlib, 'init_detection_model', lambda *_, **__: None)  # their weights are not here
    monkeypatch.setattr(facexlib, 'init_parsing_model', lambda *_, **__: None)
    image = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 4)
    for noise in (0, 3):  # landmarks of people do not fit the template
        landmarks = landmarks_of(12, 256, (200, 190)) + noise * np.random.default_rng(1).standard_normal((5, 2))
        helper = facexlib.FaceRestoreHelper(1, face_size=256, device='cpu')
        helper.read_image(image)
        helper.all_landmarks_5 = [landmarks]
        helper.align_warp_face()
        matrix = alignment.similarity(landmarks, 256)
        np.testing.assert_allclose(matrix, helper.affine_matrices[0], atol=1e-9)
        ours = alignment.crop(image, matrix, 256).astype(int)
        inside = np.abs(ours - helper.cropped_faces[0])[20:-20, 20:-20]  # they fill with grey, and ours is mirrored
        assert inside.mean() < 0.5 and inside.max() <= 3


@pytest.mark.parametrize('degrees, side', [(0, 128), (20, 190), (-35, 470), (90, 300)])
def test_the_crop_shows_the_photograph_where_the_similarity_leads(degrees, side):
    size, (height, width) = 64, (720, 800)
    landmarks = landmarks_of(degrees, side, (390, 370))
    crop = alignment.crop(photograph(height, width), alignment.similarity(landmarks, size), size)
    there = umeyama(np.array(POINTS) * size / 512, landmarks)
    y, x = np.mgrid[:size, :size]
    at = np.stack([x, y, np.ones_like(x)], -1) @ there.T
    expected = picture(height, width, at[..., 1], at[..., 0])
    assert np.abs(crop - expected)[2:-2, 2:-2].max() < 4  # of 255, in front of waves whose amplitude is 100


def test_a_crop_that_shrinks_does_not_alias():
    """Stripes of two pixels vanish when a face is shrunk eight times; a warp that only interpolates keeps them."""
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    matrix = alignment.similarity(landmarks_of(3, 512, (300, 300)), 64)
    crop = alignment.crop(stripes, matrix, 64)[4:-4, 4:-4]
    assert np.abs(crop - 127.5).max() < 4
    assert cv2.warpAffine(stripes, matrix, (64, 64))[4:-4, 4:-4].std() > 40


def test_beyond_the_border_the_photograph_is_mirrored():
    image = photograph(100, 100)
    matrix = alignment.similarity(landmarks_of(0, 64, (20, 50)), 64)  # the square's left edge lies 12 pixels outside
    crop = alignment.crop(image, matrix, 64)
    left = -matrix[0, 2]
    assert left == pytest.approx(-12, abs=0.01)
    np.testing.assert_allclose(crop[:, :12].astype(int), crop[:, 24:12:-1], atol=2)


# ---------------------------------------------- the detector ---------------------------------------------------------


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """Weights files: random ones, and ones of a detector that finds the same face in all pictures, or none."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(3)
    state = alignment._empty_detector('cpu').state_dict()
    for key in state:  # boxes near their anchors, none of them larger than the picture
        if 'Head' in key:
            state[key].mul_(0.02)
    state['ClassHead.2.conv1x1.bias'][0::2] = 9.0
    torch.save({f'module.{key}': value for key, value in state.items()}, folder / 'random.pth')
    for key in state:
        if 'Head' in key:
            state[key].zero_()
    torch.save({key: value.half() for key, value in state.items()}, folder / 'blind.pth')
    # Anchors of 512 pixels (the second at every 32nd pixel) are faces. In a picture of 32 x 32 there is one of them,
    # at its centre; a landmark is the centre plus a tenth of the anchor times what the network says.
    for level in range(3):
        state[f'ClassHead.{level}.conv1x1.bias'][0::2] = 9.0
    state['ClassHead.2.conv1x1.bias'][2:] = torch.tensor([0.0, 9.0])
    offsets = (landmarks_of(20, 40, (16, 16)) - 16) / 51.2
    state['LandmarkHead.2.conv1x1.bias'][10:] = torch.from_numpy(offsets.ravel())
    torch.save(state, folder / 'one.pth')
    return folder


def greedy(boxes, threshold):
    """Non-maximum suppression in numpy: boxes are x1, y1, x2, y2, score, the best first."""
    kept = []
    for index, box in enumerate(boxes):
        overlaps = []
        for other in boxes[kept]:
            sides = np.minimum(box[2:4], other[2:4]) - np.maximum(box[:2], other[:2])
            shared = np.prod(np.maximum(sides, 0))
            areas = np.prod(box[2:4] - box[:2]) + np.prod(other[2:4] - other[:2])
            overlaps.append(shared / (areas - shared))
        if max(overlaps, default=0) <= threshold:
            kept.append(index)
    return kept


def test_the_largest_face_is_that_of_facexlib(networks, monkeypatch):
    """A random network's answers, decoded by facexlib's own method and sorted out here."""
    from facexlib.detection import retinaface

    monkeypatch.setattr(retinaface, 'py_cpu_nms', greedy)  # torchvision's may be missing
    monkeypatch.setattr(alignment, 'CONFIDENCE', 0.5)
    network = alignment.detector(str(networks / 'random.pth'))
    image = np.random.default_rng(5).integers(0, 255, (96, 128, 3), np.uint8)
    with torch.inference_mode():
        found = network.detect_faces(image, 0.5)
    assert len(found) > 1
    corners = found[:, :4].clip(0, [128, 96, 128, 96])
    largest = found[np.argmax(np.prod(corners[:, 2:] - corners[:, :2], 1))]
    np.testing.assert_allclose(alignment.find_landmarks(image, network).ravel(), largest[5:], atol=1e-3)

    # a photograph that is twice as large is shrunk for the detector, and its landmarks lie twice as far
    monkeypatch.setattr(alignment, 'SHORTEST', 96)
    twice = image.repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(alignment.find_landmarks(twice, network).ravel(), 2 * largest[5:], atol=2e-2)


def test_photographs_become_aligned_faces(tmp_path, networks, capsys):
    """The whole command, with a detector that finds one face, turned by 20 degrees and 40 pixels wide, in each."""
    y, x = np.mgrid[:32, :32].astype(float)
    save(tmp_path / 'in' / 'trip' / 'a.png', picture(320, 320, y, x).round())
    (tmp_path / 'in' / 'b.jpg').write_bytes(b'\xff\xd8\xff no picture')
    words = ('-i', tmp_path / 'in', '-o', tmp_path / 'out', '--size', 32, '--detector', networks / 'one.pth')
    with pytest.raises(UserError, match='1 of 2 images in .* could not be used .b.jpg is damaged'):
        run(*words)
    captured = capsys.readouterr()
    assert 'faces: 1 done, 0 kept, 1 unreadable' in captured.out and 'All faces go into train' in captured.err
    assert made(tmp_path / 'out') == ['train/trip_a.png']
    crop = cv2.imread(str(tmp_path / 'out' / 'train' / 'trip_a.png'))
    there = umeyama(np.array(POINTS) / 16, landmarks_of(20, 40, (16, 16)))
    at = np.stack([x, y, np.ones_like(x)], -1) @ there.T
    inside = ((at > 2) & (at < 29)).all(-1)
    expected = picture(320, 320, at[..., 1], at[..., 0])
    assert inside.sum() > 400 and np.abs(crop - expected)[inside].max() < 4

    with pytest.raises(UserError, match='a.png shows a face of 40x40 pixels, smaller than --size 64'):
        run('-i', tmp_path / 'in', '-o', tmp_path / 'large', '--size', 64, '--detector', networks / 'one.pth')
    assert made(tmp_path / 'large') == []


def test_a_folder_without_faces(tmp_path, networks, capsys):
    for name in ('a.png', 'b.png'):
        save(tmp_path / 'in' / name, photograph(40, 70))
    with pytest.raises(UserError, match='2 of 2 images in .* .a.png shows no face; b.png shows no face'):
        run('-i', tmp_path / 'in', '-o', tmp_path / 'out', '--size', 32, '--detector', networks / 'blind.pth')
    assert '0 done, 0 kept, 0 unreadable, 2 without a face' in capsys.readouterr().out
    assert made(tmp_path / 'out') == []


def test_weights_that_are_missing_or_of_another_network(faces, monkeypatch):
    name = 'detection_Resnet50_Final.pth'
    monkeypatch.setitem(upscale.FACE_URLS, name, f'http://127.0.0.1:9/{name}')
    weights = faces / 'weights' / name
    torch.save({'conv.weight': torch.zeros(3)}, faces / 'other.pth')
    (faces / 'torn.pth').write_bytes(b'PK no checkpoint')
    before = contents(faces)
    for file, sentence in (
        (weights, f'--detector: {weights} .*cannot be downloaded .*get it from http://127.0.0.1:9/{name} and put it'),
        (faces / 'gone.pth', '--detector: the file .*gone.pth does not exist'),
        (faces / 'other.pth', '--detector: .*other.pth does not fit RetinaFace: 456 keys are missing'),
        (faces / 'torn.pth', '--detector: .*torn.pth cannot be read as a weights file'),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            run('-i', faces / 'in', '-o', faces / 'out', '--detector', file)
        assert '\n' not in str(caught.value) and str(caught.value).endswith('.')
    assert contents(faces) == before and not (faces / 'out').exists() and not weights.parent.exists()


def test_where_facexlib_keeps_its_weights(monkeypatch, tmp_path, networks):
    """Without a flag, the file is looked for where facexlib's own loader looks for it."""
    import importlib.util
    import types

    from facexlib.utils import misc

    own = Path(misc.ROOT_DIR) / 'facexlib'
    assert Path(importlib.util.find_spec('facexlib').submodule_search_locations[0]) == own
    (tmp_path / 'weights').mkdir()
    kept = tmp_path / 'weights' / 'detection_Resnet50_Final.pth'
    kept.symlink_to(networks / 'one.pth')
    elsewhere = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(alignment.importlib.util, 'find_spec', lambda name: elsewhere)
    assert alignment.find_weights(None) == str(kept)
    monkeypatch.setattr(alignment.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='facexlib is not installed: pip install facexlib, or .* --aligned'):
        alignment.find_weights(None)


# ---------------------------------------------- aligned faces --------------------------------------------------------


def test_aligned_faces_are_shrunk_and_never_enlarged(faces, capsys):
    image = photograph(128, 128)
    save(faces / 'more' / 'large.png', image)
    save(faces / 'more' / 'equal.png', image[:64, :64])
    save(faces / 'more' / 'small.png', image[:63, :63])
    save(faces / 'more' / 'wide.png', image[:64, :])
    with pytest.raises(
        UserError, match=r'2 of 4 .*small.png is smaller .63x63. than --size 64; wide.png is not square'
    ):
        run('-i', faces / 'more', '-o', faces / 'out', '--size', 64, '--aligned')
    assert '2 done, 0 kept, 0 unreadable, 1 not square, 1 too small' in capsys.readouterr().out
    assert made(faces / 'out') == ['train/equal.png', 'train/large.png']
    assert np.array_equal(cv2.imread(str(faces / 'out' / 'train' / 'equal.png')), image[:64, :64])
    means = image.reshape(64, 2, 64, 2, 3).mean((1, 3))  # another antialiasing filter: nearly the same picture
    shrunk = cv2.imread(str(faces / 'out' / 'train' / 'large.png'))
    assert np.abs(shrunk - means).max() < 3


def test_no_identity_is_in_two_parts(faces, capsys):
    lists = (('people.csv', '--validation', 1, '--test', 2), ('parts.txt',))
    for file, *numbers in lists:
        out = faces / file.split('.')[0]
        assert (
            run('-i', faces / 'in', '-o', out, '--size', 32, '--aligned', '--identities', faces / file, *numbers) == 0
        )
        people = defaultdict(set)
        for name in made(out):
            people[Path(name).parent.name].add(PEOPLE[Path(name).stem])
        assert len(made(out)) == 6 and set.union(*people.values()) == set(PEOPLE.values())
        assert sum(map(len, people.values())) == 4
        if numbers:
            assert {part: len(who) for part, who in people.items()} == {'train': 1, 'validation': 1, 'test': 2}
        else:
            assert people == {'train': {'ann', 'cy'}, 'validation': {'bob'}, 'test': {'di'}}
    assert 'train: 3 faces of 2 identities\nvalidation: 2 faces of 1 identities\n' in capsys.readouterr().out
    # who is held out does not depend on the order of the list
    lines = (faces / 'people.csv').read_text().splitlines()
    (faces / 'turned.csv').write_text('\r\n'.join(reversed(lines[1:])))
    words = ('--identities', faces / 'turned.csv', '--validation', 1, '--test', 2)
    run('-i', faces / 'in', '-o', faces / 'turned', '--size', 32, '--aligned', *words)
    assert made(faces / 'turned') == made(faces / 'people')


def test_databases_are_basicsrs(faces, capsys):
    words = ('-i', faces / 'in', '-o', faces / 'out', '--size', 32, '--aligned', '--lmdb')
    listed = ('--identities', faces / 'parts.txt')
    for found in ('2 done, 0 kept', '0 done, 2 kept'):
        assert run(*words, *listed) == 0
        assert f'lmdb: {found}, 0 unreadable; {faces / "out" / "validation.lmdb"}' in capsys.readouterr().out
    database = faces / 'out' / 'validation.lmdb'
    assert (database / 'meta_info.txt').read_text() == 'b1.png (32,32,3) 1\nb2.png (32,32,3) 1\n'
    with lmdb.open(str(database), readonly=True, lock=False) as db, db.begin() as content:
        for key in ('b1', 'b2'):
            stored = cv2.imdecode(np.frombuffer(content.get(key.encode()), np.uint8), cv2.IMREAD_COLOR)
            assert np.array_equal(stored, cv2.imread(str(faces / 'out' / 'validation' / f'{key}.png')))

    from basicsr.data.ffhq_dataset import FFHQDataset

    root = str(faces / 'out' / 'train.lmdb')
    options = {'dataroot_gt': root, 'io_backend': {'type': 'lmdb'}, 'mean': [0.5] * 3, 'std': [0.5] * 3}
    dataset = FFHQDataset({**options, 'use_hflip': False})
    assert len(dataset) == 3 and dataset[0]['gt'].shape == (3, 32, 32)

    save(faces / 'in' / 'IMG.1.png', photograph(48, 48))
    with pytest.raises(UserError, match='IMG.1.png in .* cannot be a key'):
        run(*words[:2], '-o', faces / 'out2', *words[4:])
    assert not (faces / 'out2').exists()


def test_a_second_run_makes_what_is_missing(faces, capsys):
    (faces / 'in' / 'x.jpg').write_bytes(b'\xff\xd8\xff no picture')
    words = ('-i', faces / 'in', '-o', faces / 'out', '--size', 32, '--aligned')
    with pytest.raises(UserError, match='x.jpg is damaged'):
        run(*words)
    assert '6 done, 0 kept, 1 unreadable' in capsys.readouterr().out
    before = contents(faces / 'out')
    (faces / 'out' / 'train' / 'b1.png').unlink()
    (faces / 'in' / 'x.jpg').unlink()
    assert run(*words) == 0
    assert '1 done, 5 kept, 0 unreadable' in capsys.readouterr().out
    assert contents(faces / 'out') == before
    with pytest.raises(UserError, match='was made with size 32, and now it is 64'):
        run(*words[:4], '--size', 64, '--aligned')
    # a face that another list puts into another part would be in both
    with pytest.raises(UserError, match=r'-o: .*train.b1.png was made of a picture that is gone or of another part'):
        run(*words, '--identities', faces / 'parts.txt')
    assert contents(faces / 'out') == before


def test_several_folders(faces):
    save(faces / 'in2' / 'a1.png', photograph(48, 48))
    run('-i', faces / 'in', faces / 'in2', '-o', faces / 'out', '--size', 32, '--aligned')
    assert made(faces / 'out') == ['train/in2_a1.png'] + [f'train/in_{name}.png' for name in PEOPLE]
    save(faces / 'in2' / 'sub' / 'a.png', photograph(48, 48))
    save(faces / 'in2' / 'sub_a.png', photograph(48, 48))
    with pytest.raises(UserError, match='sub.a.png and sub.a.png in .*in2 would both become sub_a'):
        run('-i', faces / 'in2', '-o', faces / 'out2', '--size', 32, '--aligned')
    assert not (faces / 'out2').exists()


# ---------------------------------------------- mistakes --------------------------------------------------------------


@pytest.mark.parametrize(
    'words, sentence',
    [
        ('--size 100', "--size: write a power of two, 32, 64, 128, 256, 512, 1024, not '100'"),
        ('--size 2048', "--size: .* not '2048'"),
        ('--size 16', "--size: .* not '16'"),
        ('--validation 1', '--validation: faces that are held out at random .* say with --identities FILE'),
        ('--test 0', "--test: write a whole number of at least 1, not '0'"),
        ('--detector a.pth', '--detector: with --aligned no face is searched for'),
        ('-i gone', '-i: gone is no folder'),
        ('-i empty', '-i: empty holds no file'),
        ('-o in/out', 'lies in the folder of the inputs'),
        ('-o lists', 'already exists and `sdakd prepare` did not make it'),
        ('--identities gone.csv --test 1', '--identities: the file gone.csv does not exist'),
        ('--identities people.csv', 'people.csv does not say who is held out; give --validation or --test'),
        ('--identities people.csv --validation 2 --test 2', 'people.csv has 4 identities in these .* leave some'),
        ('--identities parts.txt --validation 1', 'parts.txt names the part of every picture; leave out --validation'),
        ('--identities lists/short.csv --test 1', 'short.csv lacks 5 of 6 pictures, the first is a2.png'),
        ('--identities lists/form.csv --test 1', "line 2 of .*form.csv is 'a2.png'; write a line per picture"),
        ('--identities lists/part.csv', 'line 1 of .*part.csv has the part valid; did you mean validation'),
        ('--identities lists/mixed.csv', 'line 2 of .*mixed.csv and line 1 differ: only one has a part'),
        ('--identities lists/twice.csv --test 1', 'line 2 of .* says that a1.png is bob, and line 1 that it is ann'),
        ('--identities lists/leak.csv', 'line 2 of .* puts ann into test, and line 1 into train; an identity belongs'),
        ('--identities lists/empty.csv', 'empty.csv is empty; write a line per picture'),
        ('--identities lists/binary.csv', 'binary.csv is no text'),
    ],
)
def test_a_mistake_is_one_sentence_and_creates_nothing(faces, monkeypatch, words, sentence):
    monkeypatch.chdir(faces)
    for name, text in {
        'short': 'a1.png,ann',
        'form': 'a1.png,ann\na2.png',
        'part': 'a1.png,ann,valid',
        'mixed': 'a1.png,ann,train\na2.png,ann',
        'twice': 'a1.png,ann\na1.png,bob',
        'leak': 'a1.png,ann,train\na2.png,ann,test',
        'empty': '\n',
    }.items():
        (faces / 'lists').mkdir(exist_ok=True)
        (faces / 'lists' / f'{name}.csv').write_text(text)
    (faces / 'lists' / 'binary.csv').write_bytes(b'\xff\xfe\x80')
    (faces / 'empty').mkdir()
    before = sorted(faces.rglob('*')), contents(faces)
    with pytest.raises(UserError, match=sentence) as caught:
        run('-i', 'in', '-o', 'out', '--size', 32, '--aligned', *words.split())
    assert '\n' not in str(caught.value) and str(caught.value)[-1] in '.?'
    assert (sorted(faces.rglob('*')), contents(faces)) == before


def test_the_command_line_ends_with_status_2(faces):
    root = str(Path(cli.__file__).parents[1])  # off the path again, or its folder basicsr/ could hide BasicSR
    enter = (
        f'import sys; sys.path.append({root!r}); from sdakd import cli; sys.path.remove({root!r}); sys.exit(cli.main())'
    )
    words = ['-c', enter, 'prepare', 'faces', '-i', 'in', '-o', 'out', '--aligned', '--size', '96']
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=faces)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('Error: --size: write a power of two')
