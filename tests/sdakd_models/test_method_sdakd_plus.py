"""SDAKD plus is the recipe of options/zoo in the setting of options/methods, and trains towards the teacher's image."""

import os

import torch
from basicsr.models import build_model

from sdakd_models.reader import read_run
from sdakd_models.scenario import Scenario

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KINDS = ('output_opt', 'imitation_opt')


def load(name):
    return read_run(os.path.join(ROOT, f'options/{name}.yml'))


def test_it_is_the_recipe_of_the_zoo():
    own, zoo = load('methods/sdakd_plus'), load('zoo/x4plus_rrdbnet_1_4')
    assert {key: own['train'][key] for key in KINDS} == {key: zoo['train'][key] for key in KINDS}
    for stage in ('distillation', 'adversarial'):
        assert own['train']['stages'][stage]['terms'] == zoo['train']['stages'][stage]['terms']
    one, other = own['discriminators']['image'], zoo['discriminators']['image']
    assert (one['real'], one['fake']) == (other['real'], other['fake']) == ('teacher', ['student'])
    assert one['network']['num_feat'] == own['network_g']['num_feat']
    first = load('methods/sdakd')['train']['stages']['supervised']
    assert own['train']['stages']['supervised'] == first
    scenario = Scenario.read(own)
    assert scenario.own_terms == {'output', 'imitation', 'gan:image'} and scenario.border == 0
    assert not scenario.leaves_border('supervised') and scenario.leaves_border('adversarial')


def test_training_by_its_option_file(world, parse):
    """Of its terms but the backbone's: the student comes closer to the teacher's image than to the ground truth."""
    published, options = load('methods/sdakd_plus'), world.options()
    del options['network_d'], options['train']['gan_opt'], options['train']['feature_opt']
    options['discriminators'] = {'image': published['discriminators']['image'] | {'network': {'width': '1/2'}}}
    stages = {name: published['train']['stages'][name] for name in ('distillation', 'adversarial')}
    for stage in stages.values():
        stage |= {'iters': 15, 'lr_g': 3e-3, 'terms': [term for term in stage['terms'] if term != 'imitation']}
    options['train'] |= {'stages': stages, 'output_opt': published['train']['output_opt'], 'teacher_margin': 0}
    options['train']['pixel_opt'] = None
    model = build_model(parse(world.write(options), world.root))
    gt = torch.rand(2, 3, 32, 32)
    lq = torch.nn.functional.avg_pool2d(gt, 4)
    seen = []
    model.discriminators['image'].bare.register_forward_pre_hook(lambda _net, given: seen.append(given[0].detach()))
    with torch.no_grad():
        teacher = model.teachers['teacher'](lq)
    for iteration in range(1, 31):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': lq})
        model.optimize_parameters(iteration)
        log = model.get_current_log()
        if iteration == 1:
            first = log['l_g_output']
    assert {'l_g_output', 'l_g_gan_image', 'out_d_real_image', 'out_d_overlap_image'} <= set(log)
    assert log['l_g_output'] < first / 2
    assert any(torch.equal(image, teacher) for image in seen) and len(seen) >= 45
