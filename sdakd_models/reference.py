"""Writes the page of the options from their types: ``python -m sdakd_models.reference > docs/options.md``."""

from __future__ import annotations

import sys
import typing

from msgspec import NODEFAULT, Struct, structs

from sdakd_models.basicsr_options import (
    DATASETS,
    Dataset,
    Degradation,
    DistParams,
    IOBackend,
    Paths,
    Settings,
    StudentBlock,
    Validation,
)
from sdakd_models.options import Cotrain, DiscriminatorBlock, Logger, Selective, TeacherBlock, Train, Wandb
from sdakd_models.registry import TERMS
from sdakd_models.stages import CosineAnnealingLR, MultiStepLR, Stage

_HEAD = """\
# Options

An option file is BasicSR's, with these additions. Numbers may be written without a dot (`2e-4` is text to YAML and is
read as a number here). Unknown keys and values of the wrong kind end the run before anything is created, with a
sentence each, all of them at one start.

`-opt` takes a file, or the name of one that ships, with or without folder and ending: `-opt fakd`, `-opt methods/fakd`.
A file of this path wins. `sdakd options` lists them, `sdakd options NAME > FILE` writes one that needs no other.

Editors that know JSON schemas, such as VS Code with its YAML extension, complete and check an option file whose first
line is `# yaml-language-server: $schema=schema.json`, with the path from the file to what `sdakd options --schema`
prints.

`model_type` is `SDAKDRealESRGANModel` (Real-ESRGAN's second-order degradation, or `high_order_degradation: false`
with `RealESRGANPairedDataset`), `SDAKDModel` (paired data, such as `PairedImageDataset`) or `SDAKDGCFSRModel`
(faces). `network_g` is the student, `network_d` the student discriminator. Checkpoints to start from stand under
`path:` as in BasicSR; paths are looked for in the current folder, then in the one that holds `experiments/`. The
total number of iterations and the enlarging of a data set that is needed to reach it are derived.

BasicSR's own blocks are checked as strictly: [data sets](#datasets), [degradation](#degradation), [val](#val),
[path](#path), [logger](#logger) and [dist_params](#dist_params). At the top, unknown keys are legal, unless one looks
like a known one. Before a run creates anything, it loads the first image of every data set with its loader, tries the
metrics of validation, and rehearses the first step of every stage.

`num_threads: 2` at the top is the number of threads on the CPU. Without it, or with `auto`, `OMP_NUM_THREADS` says it.
Where neither does, steps are timed for about a second before a run on the CPU begins, with 1, 2, 4, ... and all
threads, and the log tells what was found. A run that is continued keeps its number, because sums of another one differ
in their last bits.

## extends

`extends: other.yml` at the top takes everything from another file, which may extend a third; what the file itself says
goes on top. The path starts from the folder of the file that says so; where there is no such file, it may be the name
of one that ships, `extends: methods/fakd`.

- Mappings merge key by key. Inherited stages keep their order, new ones come after them.
- Lists and plain values replace. So does a mapping with a `type` that the inherited one does not have: nothing of
  another loss, scheduler or network is left.
- A null removes an inherited key (`lr_d: ~`), and the run behaves as if it had never been written. Under `train`,
  `<term>_opt: ~` stays where a stage names the term: it takes the term out of all stages.
- `--force_yml` comes last.

A key that stands twice in one mapping is refused. `experiments/<name>/` receives the file with everything resolved
where it extends another, has a `width` or was changed by `--force_yml`: it needs no other file.

## width

`width: 1/4` (or 0.25) in `network_g`, `network_d` or the `network` of an entry of `discriminators` stands for the
channels of a network that is so much narrower. Alone, it narrows the teacher (`teacher: network`, or what the file
of its weights tells), in a discriminator the one of the teacher's architecture: a `UNetDiscriminatorSN` of 64
features for RRDBNet and SRVGGNetCompact, a `GCFSRDiscriminator` for GCFSR. Beside a `type`, the other keys of the
block say the full width: `{type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64, width: 1/4}` has 16 features.
`--force_yml network_g:width=1/8` changes it; other values inside the block, as `network_g:num_feat=8`, change the
narrowed network.

## imports

`imports: [my_package.losses]` imports modules before anything is looked up, so that their architectures, losses,
terms, data sets and metrics of validation are known to this run and to `sdakd compare`. A package that every command
is to know is installed with an entry point of the group `sdakd.plugins`. Modules are looked for where Python looks,
and last in the current folder. The folder of the option file is not searched: code that lies beside somebody else's
file is not executed. An option file with `imports` still runs code: read that line before you train with a file that
somebody else wrote.
"""
_TAIL = """\
## val: metrics

`psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: true}`: an entry holds the `type` of a metric, the
arguments of its function, and `better`, `lower` or `higher` (the default, but for NIQE, FID and FD).

## Terms

| term | options | compares |
|---|---|---|
"""
_DISCRIMINATORS = """\
| `gan` | `train:gan_opt` | The verdict of the student discriminator (`network_d`). |
| `gan:<name>` | its `gan_opt`, or `train:gan_opt` | The verdict of an entry of `discriminators`. |

One line takes a term out of all stages: `perceptual_opt: ~`. The log has `l_g_<term>`, for perceptual
backbones with the backbone's name (`l_g_percep_vgg16`), and for every discriminator `l_d_real`, `l_d_fake`,
`out_d_real` and `out_d_fake`, with `_<name>` for entries of `discriminators`. One with
`real: teacher` also logs `out_d_overlap_<name>`: how much its outputs on the teacher's images and on the ground truth
overlap, 1 for equal distributions and 0 for separate ones. One with `selective` also logs `l_d_gap_<name>`, how far
its balance is from the teacher's, and `out_d_channels_<name>`, the part of its channels that are on
([GCC](methods/gcc.md)).

A run without `network_g`, whose stages have no `lr_g`, trains discriminators only. R1 is logged as `l_d_r1`. A
teacher with `cotrain` learns at the student's rate and with its optimizer, by the terms that compare with no
teacher (`l_t_<term>`) and, if it is the block `teacher:`, against the discriminators that have its images among their
fakes.

A tap is a dotted module name, `body.5` (its output) or `conv9:input` (its input). Without `layers`, four depths
evenly spread over the trunk are taken: outputs of residual blocks (RRDBNet), of activations (SRVGGNetCompact) or of
the decoder's modulated convolutions (GCFSR). Networks of different depth or architecture are paired by depth
([architectures](architectures.md)).

## Shares of the gradient

A term is heard by the size of its gradient, which its weight does not tell. `share_<term>` in the log is the norm of
the term's gradient over the student's parameters, divided by the sum of these norms over all terms; it is measured in
the first and the 100th iteration of a stage and every `share_freq` iterations. A term that needs a teacher, or a
discriminator other than the student's, is named in a warning when it has less than 5 %, or more
than 90 % where other kinds of terms are on as well.

Instead of its `loss_weight`, any term's block, `gan_opt` included, may hold `share: 0.3`. The run then looks for the
weight that gives the term this part of the gradient of all terms but GAN losses with a weight, which come on top: the
median over 20 batches among the first 200 iterations of every stage (of a GAN loss, whose gradient grows with its
discriminator: among the first 2,000). The weight then stays for the rest of the stage; it is logged as
`weight_<term>` and kept in the training state. Shares need a term with a weight beside them that is no GAN loss, and
add up to less than 1.

## Borders of crops

What a teacher makes of the pixels near a crop's border is no knowledge: it has seen zeros where the image goes on.
Terms that compare with a teacher, and discriminators that see a teacher's images, leave out `teacher_margin` input
pixels on each side; pixels against the ground truth count everywhere. Where the teacher was shown more than the crop,
nothing is left out: pairs of `pool_reuse` are larger by the margin, and a cache holds answers to whole images. That
matters where all terms look at the teacher, because only there the student's own border is trained: without it, a
student of 1,600 iterations was 25 dB from the teacher inside of images and 17 dB within 4 input pixels of their border.
A stage of such terms alone, without context, is named in a warning. When a run starts, the teacher's image of two
or three training crops is compared with what it makes of them in context, and the log tells the difference; below 36
dB it warns, with a margin or a crop that would do. Real-ESRGAN's x4plus is 33 dB from itself in context on crops of
256 (64 of the input), and 39 dB with a margin of 8.

## Reusing pairs

Real-ESRGAN's degradation and a large teacher cost more than the step of a narrow student. With `pool_reuse: 4`, pairs
of the pool are larger than a crop by 4 input pixels and by `teacher_margin` on each side, four crops are drawn of each
before it leaves, and the teacher is asked once about the whole pair. Its maps are kept in half precision. Images are
mirrored after the pool, but not while feature maps are compared: those of a mirrored input are not the mirrored maps.
A teacher that learns along is asked every time. Paired data have the pool as well: `datasets:train:gt_size` is the
pair's side then, `gt_size` beside `model_type` the crop's, and `queue_size` (default 180) the number of pairs.

## Several students

`students: {w2: {width: 1/2}, w4: {width: 1/4}}` trains several students in one run, each bit for bit the student of a
run of its own ([page](students.md)). An entry is merged over the file as a file is over what it extends.

## Faces

`SDAKDGCFSRModel` trains GCFSR ([docs/gcfsr.md](gcfsr.md)) on data sets of the type `FaceDataset`. `val:tile` has no
meaning for it. `val:noise` is what its generators add in validation: `none` (the default), `random` (drawn anew in
every validation, from `manual_seed`) or `fixed` (from the image's name alone).
"""


def _kind(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return ' or '.join(f'`{value}`' for value in arguments)
    if origin is list:
        return f'list of {_kind(arguments[0])}'
    if origin is dict:
        return 'mapping'
    if arguments:
        return ' or '.join(_kind(argument) for argument in arguments if argument is not type(None))
    names = {'str': 'text', 'int': 'whole number', 'float': 'number', 'bool': 'true or false', 'dict': 'mapping'}
    name = getattr(annotation, '__name__', str(annotation))
    return names.get(name, f'[{name}](#{name.lower()})')


def _section(title: str, struct: type[Struct], beyond: type[Struct] = Struct) -> str:
    """A table of keys, without those of ``beyond``."""
    kinds = typing.get_type_hints(struct, include_extras=True)
    lines = [
        f'## {title}',
        '',
        ' '.join(struct.__doc__.split()).replace('``', '`'),
        '',
        '| key | kind | default | meaning |',
        '|---|---|---|---|',
    ]
    for field in structs.fields(struct):
        # an alias that is annotated itself brings its bounds along, before the description
        meaning = typing.get_args(kinds[field.name])[-1].description
        if field.name in beyond.__struct_fields__ or meaning.startswith('Filled in'):
            continue
        default = field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        shown = 'required' if default is NODEFAULT else '~' if default is None else f'`{default}'.lower() + '`'
        if isinstance(default, (dict, list)):
            shown = f'`{str(default).replace(chr(39), "")}`'
        for name, needed in (('needed', 'required'), ('needed_in_training', 'required to train')):
            shown = needed if field.name in getattr(struct, name, ()) else shown
        lines.append(f'| `{field.encode_name}` | {_kind(kinds[field.name])} | {shown} | {meaning} |')
    return '\n'.join(lines) + '\n'


def first(cls: type) -> str:
    """The first paragraph of a docstring, in one line."""
    return ' '.join(cls.__doc__.partition('\n\n')[0].split()).replace('``', '`')


def own_terms() -> dict[str, type]:
    """The terms of this project by name: not what a package of a user's has registered."""
    return {name: cls for name, cls in sorted(TERMS.items()) if cls.__module__.startswith('sdakd_models.')}


def reference() -> str:
    """The whole page, as Markdown."""
    terms = own_terms().items()
    sections = [
        ('teacher', TeacherBlock),
        ('cotrain', Cotrain),
        ('train', Train),
        ('train: stages: a stage', Stage),
        ('MultiStepLR', MultiStepLR),
        ('CosineAnnealingLR', CosineAnnealingLR),
        *((f'train: {cls.option}', cls.Options) for _, cls in terms if structs.fields(cls.Options)),
        ('discriminators: an entry', DiscriminatorBlock),
        ('selective', Selective),
        ('students: an entry', StudentBlock),
        ('logger', Logger),
        ('wandb', Wandb),
        ('Beside model_type', Settings, Degradation),
        ('degradation', Degradation),
        ('datasets', Dataset),
        *((f'datasets: {name}', struct, Dataset) for name, struct in DATASETS.items()),
        ('IOBackend', IOBackend),
        ('val', Validation),
        ('path', Paths),
        ('dist_params', DistParams),
    ]
    rows = [f'| `{name}` | `train:{cls.option}` | {first(cls)} |\n' for name, cls in terms]
    parts = [_HEAD, *(_section(*section) for section in sections), _TAIL + ''.join(rows) + _DISCRIMINATORS]
    return '\n'.join(parts)


if __name__ == '__main__':
    sys.stdout.write(reference())
