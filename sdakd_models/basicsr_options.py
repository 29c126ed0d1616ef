"""The options that are BasicSR's own, typed: data sets, degradation, validation, paths, and the whole option file.

A key whose default is nothing here may be missing, but not null, unless its type says so.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from sdakd_models.options import Block, DiscriminatorBlock, Logger, TeacherBlock, Train, rule

KERNELS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')
ROUNDING = 0.015  # how far probabilities with two digits may be from a sum of 1
MOST = 2**31 - 1

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[  # YAML reads 2026 as a number
    str | int, rule(lambda name: None if 0 < len(str(name)) <= 200 else 'write a short name')
]
Side = Annotated[int, Meta(ge=1, le=MOST)]
Probability = Annotated[float, Meta(ge=0, le=1)]


def _threads(wanted: str | int) -> str | None:
    right = wanted == 'auto' or (isinstance(wanted, int) and wanted >= 1)
    return None if right else 'write auto or a number of threads of at least 1'


Threads = Annotated[str | int, rule(_threads)]


def _adds_up(shares: list[float]) -> str | None:
    return None if abs(sum(shares) - 1) <= ROUNDING else 'write probabilities that add up to 1'


def _ascends(span: list[float]) -> str | None:
    return None if span[0] <= span[1] else 'write the smaller number first'


def _widens(span: list[float]) -> str | None:
    return None if span[0] < span[1] else 'write a smaller number and a larger one'


Pair = Meta(min_length=2, max_length=2)
Resizing = Annotated[list[Annotated[float, Meta(ge=0.01, le=100)]], Pair, rule(_ascends)]  # 400 pixels stay some
Widths = Annotated[list[Annotated[float, Meta(gt=0, le=1000)]], Pair, rule(_widens)]  # BasicSR asserts it
Shapes = Annotated[list[Annotated[float, Meta(gt=0, le=1000)]], Pair, rule(_ascends)]
Strengths = Annotated[list[Annotated[float, Meta(ge=0, le=1000)]], Pair, rule(_ascends)]
Qualities = Annotated[list[Annotated[float, Meta(ge=1, le=100)]], Pair, rule(_ascends)]  # JPEG of 0 divides by zero
Resizes = Annotated[list[Probability], Meta(min_length=3, max_length=3), rule(_adds_up)]
Kernels = Annotated[list[Literal[KERNELS]], Meta(min_length=1)]
KernelShares = Annotated[list[Probability], Meta(min_length=1), rule(_adds_up)]
KernelSize = Annotated[int, Meta(ge=3, le=21), rule(lambda side: None if side % 2 else 'write an odd number up to 21')]
Channels = Annotated[list[float], Meta(min_length=1, max_length=3)]


class IOBackend(Block):
    """Where images lie: ``io_backend:`` of a data set."""

    type: Annotated[Literal['disk', 'lmdb'], Meta(description='Folders of files, or LMDB data sets.')]
    db_paths: Annotated[str | list[str], Meta(description='Filled in by the data set.')] = None
    client_keys: Annotated[str | list[str], Meta(description='Filled in by the data set.')] = None
    readonly: Annotated[bool, Meta(description="LMDB's.")] = None
    lock: Annotated[bool, Meta(description="LMDB's.")] = None
    readahead: Annotated[bool, Meta(description="LMDB's.")] = None


class Dataset(Block):
    """An entry of ``datasets:`` (``train``, ``val``, ``val_1``, ...): what BasicSR's loader takes of any data set.

    A data set of a package of your own may have further keys; those that look like one of these are refused.
    """

    needed: ClassVar[tuple[str, ...]] = ('name', 'type')
    needed_in_training: ClassVar[tuple[str, ...]] = ('batch_size_per_gpu',)

    name: Annotated[Name, Meta(description='Its name in the log.')] = None
    type: Annotated[Text, Meta(description='Class of the data set.')] = None
    num_worker_per_gpu: Annotated[
        Literal['auto'] | Annotated[int, Meta(ge=0)],
        Meta(description='Processes that load images, in training; auto, the default, measures samples and steps.'),
    ] = 'auto'
    batch_size_per_gpu: Annotated[Side, Meta(description='Batch of each process, in training.')] = None
    dataset_enlarge_ratio: Annotated[Side, Meta(description='Without effect: a run is one long epoch.')] = 1
    on_bad_sample: Annotated[
        Literal['stop', 'skip'],
        Meta(description='Whether a training image that cannot be read stops the run, or the next one is taken.'),
    ] = 'stop'
    prefetch_mode: Annotated[
        Literal['cpu', 'cuda'] | None,
        Meta(
            description='cuda, the default on a GPU: copy the next batch to it ahead, from pinned memory; cpu: do not.'
        ),
    ] = None
    num_prefetch_queue: Annotated[Side, Meta(description='Batches that each of the processes loads ahead.')] = 2
    pin_memory: Annotated[
        bool | None, Meta(description='Load into memory that GPUs copy from; the default on a GPU.')
    ] = None
    persistent_workers: Annotated[
        bool | None, Meta(description='Start the loading processes once, the default, and not twice.')
    ] = None
    use_shuffle: Annotated[bool, Meta(description='Of older files of BasicSR; training data are shuffled.')] = None
    phase: Annotated[str, Meta(description='Filled in.')] = None
    scale: Annotated[int, Meta(description='Filled in.')] = None


class _Images(Dataset):
    io_backend: Annotated[IOBackend, Meta(description='`{type: disk}` or `{type: lmdb}`.')] = None


class PairedDataset(_Images):
    """Pairs in two folders: ``PairedImageDataset``, and what ``RealESRGANPairedDataset`` shares with it."""

    needed = (*Dataset.needed, 'dataroot_gt', 'dataroot_lq', 'io_backend')
    needed_in_training = (*Dataset.needed_in_training, 'gt_size', 'use_hflip', 'use_rot')

    dataroot_gt: Annotated[Text, Meta(description='Folder of the ground truth, or an LMDB.')] = None
    dataroot_lq: Annotated[Text, Meta(description='Folder of the inputs, or an LMDB.')] = None
    filename_tmpl: Annotated[
        str,
        rule(lambda text: None if '{}' in text else 'write what stands in the place of a name, with {} in it'),
        Meta(description="Names of inputs from the ground truth's, such as `{}x4`."),
    ] = '{}'
    gt_size: Annotated[Side, Meta(description='Side of a crop of the ground truth in pixels, in training.')] = None
    use_hflip: Annotated[bool, Meta(description='Mirror at random, in training.')] = None
    use_rot: Annotated[bool, Meta(description='Turn by 90 degrees at random, in training.')] = None
    mean: Annotated[Channels | None, Meta(description='Is subtracted from images in [0, 1].')] = None
    std: Annotated[Channels | None, Meta(description='Divides images after that.')] = None


class PairedImageDataset(PairedDataset):
    """Pairs in two folders, or in two LMDB data sets."""

    meta_info_file: Annotated[Text | None, Meta(description='List of images.')] = None
    color: Annotated[Literal['y'] | None, Meta(description='Luminance only.')] = None


class RealESRGANPairedDataset(PairedDataset):
    """Pairs for ``SDAKDRealESRGANModel`` with ``high_order_degradation: false``."""

    meta_info: Annotated[Text | None, Meta(description='List of pairs, `GT, LQ` in each line.')] = None


class SingleImageDataset(_Images):
    """Inputs without ground truth, for validation by metrics that need none."""

    needed = (*Dataset.needed, 'dataroot_lq', 'io_backend')

    dataroot_lq: Annotated[Text, Meta(description='Folder of the inputs, or an LMDB.')] = None
    meta_info_file: Annotated[Text | None, Meta(description='List of images.')] = None
    color: Annotated[Literal['y'] | None, Meta(description='Luminance only.')] = None
    mean: Annotated[Channels | None, Meta(description='Is subtracted from images in [0, 1].')] = None
    std: Annotated[Channels | None, Meta(description='Divides images after that.')] = None


class RealESRGANDataset(_Images):
    """Ground truth with random blur kernels, for Real-ESRGAN's degradation while training.

    Kernels have sides of 7 to 21 pixels whatever ``blur_kernel_size`` says: BasicSR only reads it.
    """

    needed = (
        *Dataset.needed, 'dataroot_gt', 'io_backend', 'use_hflip', 'use_rot', 'final_sinc_prob',
        *(f'{key}{number}' for number in ('', '2') for key in (
            'blur_kernel_size', 'kernel_list', 'kernel_prob', 'sinc_prob', 'blur_sigma', 'betag_range', 'betap_range',
        )),
    )  # fmt: skip

    dataroot_gt: Annotated[Text, Meta(description='Folder of the ground truth, or an LMDB that ends in `.lmdb`.')] = (
        None
    )
    meta_info: Annotated[Text | None, Meta(description='List of images; needed unless they are in an LMDB.')] = None
    use_hflip: Annotated[bool, Meta(description='Mirror at random.')] = None
    use_rot: Annotated[bool, Meta(description='Turn by 90 degrees at random.')] = None
    gt_size: Annotated[Side, Meta(description='Not read here: `gt_size` beside `model_type` is the crop.')] = None
    blur_kernel_size: Annotated[KernelSize, Meta(description='Odd, at most 21.')] = None
    kernel_list: Annotated[Kernels, Meta(description='Kinds of kernels of the first blur.')] = None
    kernel_prob: Annotated[KernelShares, Meta(description='Probability of each kind; they add up to 1.')] = None
    sinc_prob: Annotated[Probability, Meta(description='Probability of a sinc filter in the place of a kernel.')] = None
    blur_sigma: Annotated[Widths, Meta(description='Range of the standard deviation in pixels.')] = None
    betag_range: Annotated[Shapes, Meta(description='Range of the shape of generalized Gaussian kernels.')] = None
    betap_range: Annotated[Shapes, Meta(description='Range of the shape of plateau kernels.')] = None
    blur_kernel_size2: Annotated[KernelSize, Meta(description='Of the second blur, as the following ones.')] = None
    kernel_list2: Annotated[Kernels, Meta(description='As kernel_list.')] = None
    kernel_prob2: Annotated[KernelShares, Meta(description='As kernel_prob.')] = None
    sinc_prob2: Annotated[Probability, Meta(description='As sinc_prob.')] = None
    blur_sigma2: Annotated[Widths, Meta(description='As blur_sigma.')] = None
    betag_range2: Annotated[Shapes, Meta(description='As betag_range.')] = None
    betap_range2: Annotated[Shapes, Meta(description='As betap_range.')] = None
    final_sinc_prob: Annotated[Probability, Meta(description='Probability of a sinc filter at the end.')] = None


class FaceDataset(_Images):
    """Aligned faces of one size, for ``SDAKDGCFSRModel``."""

    needed = (*Dataset.needed, 'dataroot_gt', 'io_backend', 'out_size', 'factors')

    dataroot_gt: Annotated[Text, Meta(description='Folder of faces, or an LMDB that ends in `.lmdb`.')] = None
    out_size: Annotated[Side, Meta(description='Their side in pixels, that of the networks.')] = None
    factors: Annotated[
        list[Annotated[int, Meta(ge=2)]],
        Meta(
            min_length=1,
            description='Of downscaling: one is drawn for every image in training, the first counts in validation.',
        ),
    ] = None
    use_hflip: Annotated[bool, Meta(description='Mirror at random, in training.')] = True


DATASETS = {
    each.__name__: each
    for each in (PairedImageDataset, RealESRGANPairedDataset, RealESRGANDataset, SingleImageDataset, FaceDataset)
}


class Degradation(Struct):
    """Real-ESRGAN's degradation on tensors, beside ``model_type``.

    Without ``high_order_degradation: false``, all keys from ``resize_prob`` on are needed, and ``gt_size``.
    """

    gt_size: Annotated[Side, Meta(description='Side of a crop of the ground truth in pixels.')] = None
    queue_size: Annotated[Side, Meta(description='Pairs in the pool; a multiple of the batch.')] = 180
    high_order_degradation: Annotated[bool, Meta(description='False: the data set brings its own inputs.')] = True
    l1_gt_usm: Annotated[bool, Meta(description='Sharpen the target of pixel losses.')] = True
    percep_gt_usm: Annotated[bool, Meta(description='Sharpen the target of perceptual losses.')] = True
    gan_gt_usm: Annotated[bool, Meta(description='Sharpen what discriminators call real.')] = True
    resize_prob: Annotated[Resizes, Meta(description='Of resizing up, down and not; they add up to 1.')] = None
    resize_range: Annotated[Resizing, Meta(description='Range of its factors.')] = None
    gaussian_noise_prob: Annotated[Probability, Meta(description='Of Gaussian noise; else it is Poisson noise.')] = None
    noise_range: Annotated[Strengths, Meta(description='Range of the standard deviation, of 255.')] = None
    poisson_scale_range: Annotated[Strengths, Meta(description='Range of the strength of Poisson noise.')] = None
    gray_noise_prob: Annotated[Probability, Meta(description='Of noise that is equal in all channels.')] = None
    jpeg_range: Annotated[Qualities, Meta(description='Range of the quality, 1 to 100.')] = None
    second_blur_prob: Annotated[Probability, Meta(description='Of a second blur.')] = None
    resize_prob2: Annotated[Resizes, Meta(description='As resize_prob.')] = None
    resize_range2: Annotated[Resizing, Meta(description='As resize_range.')] = None
    gaussian_noise_prob2: Annotated[Probability, Meta(description='As gaussian_noise_prob.')] = None
    noise_range2: Annotated[Strengths, Meta(description='As noise_range.')] = None
    poisson_scale_range2: Annotated[Strengths, Meta(description='As poisson_scale_range.')] = None
    gray_noise_prob2: Annotated[Probability, Meta(description='As gray_noise_prob.')] = None
    jpeg_range2: Annotated[Qualities, Meta(description='As jpeg_range.')] = None


class Paths(Block):
    """The block ``path:``: checkpoints to start from, in the current folder or in that of ``experiments/``."""

    pretrain_network_g: Annotated[Text | None, Meta(description='A student to start from.')] = None
    param_key_g: Annotated[Text | None, Meta(description='Key of its tensors: params_ema, params.')] = None
    strict_load_g: Annotated[bool, Meta(description="BasicSR's; a file whose keys differ is refused always.")] = True
    pretrain_network_d: Annotated[Text | None, Meta(description='A student discriminator to start from.')] = None
    param_key_d: Annotated[Text | None, Meta(description='Key of its tensors.')] = None
    strict_load_d: Annotated[bool, Meta(description='As strict_load_g.')] = True
    resume_state: Annotated[
        Text | None, Meta(description='Training state to go on from; `--auto_resume` finds the last one.')
    ] = None
    ignore_resume_networks: Annotated[
        str | list[str] | None, Meta(description="BasicSR's: networks that do not start from the resumed run.")
    ] = None
    experiments_root: Annotated[str, Meta(description='Filled in, as the following ones.')] = None
    models: Annotated[str, Meta(description='Filled in.')] = None
    training_states: Annotated[str, Meta(description='Filled in.')] = None
    log: Annotated[str, Meta(description='Filled in.')] = None
    visualization: Annotated[str, Meta(description='Filled in.')] = None
    results_root: Annotated[str, Meta(description='Filled in.')] = None


class Validation(Block):
    """The block ``val:``, validation on the data sets ``val``, ``val_1``, ..."""

    needed: ClassVar[tuple[str, ...]] = ('val_freq',)

    val_freq: Annotated[Side, Meta(description='Iterations between two validations.')] = None
    save_img: Annotated[bool, Meta(description='Save the images.')] = False
    suffix: Annotated[str | None, Meta(description='Of the names of images, in tests.')] = None
    pbar: Annotated[bool, Meta(description="BasicSR's bar of progress.")] = False
    metrics: Annotated[dict | None, Meta(description='Metric by the name under which it is logged.')] = None
    tile: Annotated[int, Meta(ge=0, description='Side of a tile in input pixels; 0 for whole images.')] = 0
    tile_pad: Annotated[int, Meta(ge=0, description='Border of a tile in input pixels.')] = 10
    tb_images: Annotated[int, Meta(ge=0, description='Images of each set that go to TensorBoard.')] = 3
    noise: Annotated[
        Literal['none', 'random', 'fixed'] | None, Meta(description='What generators of faces add; default none.')
    ] = None


class DistParams(Block):
    """The block ``dist_params:``, of trainings on several GPUs."""

    backend: Annotated[Literal['nccl', 'gloo', 'mpi'], Meta(description='How processes talk to each other.')] = 'nccl'
    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None, Meta(description='Of the main process, with `--launcher slurm`.')
    ] = None


class Settings(Degradation):
    """Values beside ``model_type``."""

    name: Annotated[Name, Meta(description='Of the run: the folder under `experiments/`.')] = None
    model_type: Annotated[
        Text,
        Meta(description='SDAKDModel for pairs, SDAKDRealESRGANModel for its degradation, SDAKDGCFSRModel for faces.'),
    ] = None
    scale: Annotated[Side, Meta(description='Side of the output over that of the input.')] = None
    manual_seed: Annotated[Annotated[int, Meta(ge=0, lt=2**31)] | None, Meta(description='Random seed.')] = None
    num_threads: Annotated[
        Threads,
        Meta(description='Threads of a training on the CPU; auto, the default, measures them.'),
    ] = 'auto'
    find_unused_parameters: Annotated[bool, Meta(description="Of torch's DistributedDataParallel.")] = False


class StudentBlock(Block):
    """An entry of ``students:``, what one of several students has of its own; it is merged over the option file.

    Under ``train``, blocks of terms, ``ema_decay``, optimizers, R1, ``share_freq`` and what ``stages`` say of rates and
    terms. Data, lengths of stages, teachers and precision are the same for all.
    """

    width: Annotated[
        str | float | None,
        Meta(description='Takes the place of every `width` of network_g, network_d and discriminators.'),
    ] = None
    network_g: Annotated[dict | None, Meta(description='The student.')] = None
    network_d: Annotated[dict | None, Meta(description='Its discriminator.')] = None
    discriminators: Annotated[
        dict[str, dict | None] | None, Meta(description='Values of its further discriminators.')
    ] = None
    path: Annotated[
        dict | None, Meta(description='pretrain_network_g, pretrain_network_d and the keys of their tensors.')
    ] = None
    train: Annotated[dict | None, Meta(description='Values of its own.')] = None


class OptionFile(Settings):
    """The option file of a run: BasicSR's keys and those of this plugin."""

    extends: Annotated[
        str,
        Meta(
            description='Option file to take everything from that is not said here: its path from the folder of this '
            'file, or the name of one that ships.'
        ),
    ] = None
    imports: Annotated[list[str], Meta(description='Modules with architectures, losses and terms of your own.')] = None
    num_gpu: Annotated[
        Literal['auto'] | Annotated[int, Meta(ge=0)],
        Meta(description='auto, or 0 for the CPU; several need a launcher.'),
    ] = 'auto'
    datasets: Annotated[dict[str, Dataset], Meta(description='Data sets: train, val, val_1, ...')] = None
    network_g: Annotated[dict, Meta(description='The student.')] = None
    network_d: Annotated[dict, Meta(description='The student discriminator.')] = None
    teacher: TeacherBlock = None
    teachers: Annotated[dict[str, TeacherBlock], Meta(description='Further teachers by name.')] = None
    discriminators: Annotated[dict[str, DiscriminatorBlock], Meta(description='Further discriminators by name.')] = None
    students: Annotated[
        dict[str, StudentBlock], Meta(description='Several students of one run by name, which share data and teachers.')
    ] = None
    path: Paths = None
    train: Train = None
    val: Validation = None
    logger: Logger = None
    dist_params: DistParams = None
