"""The networks that ship: what their card says, and that they enlarge photographs better than interpolation."""

import os

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.matlab_functions import imresize

from sdakd_arch.weights import infer_network, load_into, read_weights
from sdakd_arch.width import build, student_of

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'sdakd/pretrained')


def load(name):
    state = read_weights(os.path.join(FOLDER, name))
    network = build(infer_network(state), name).eval()
    load_into(network, state, name, name)
    return network, infer_network(state)


@pytest.fixture(scope='module')
def pair():
    """The held-out photograph of a cat and its bicubic reduction, BGR."""
    from skimage.data import chelsea

    gt = np.ascontiguousarray(chelsea()[:300, :448, ::-1])
    return gt, imresize(gt.astype(np.float32) / 255, 0.25).clip(0, 1)


def enlarge(network, lq):
    with torch.no_grad():
        return tensor2img([network(img2tensor((lq * 255).round() / 255).unsqueeze(0))])


def sharpness(image):
    return np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float), cv2.CV_64F)).mean()


def test_student_is_a_quarter_of_the_teacher_and_better_than_bicubic(pair):
    gt, lq = pair
    (teacher, wide), (student, narrow) = load('demo_teacher_x4.safetensors'), load('demo_student_x4.pth')
    assert student_of(wide, 1 / 4) == narrow
    bicubic = (imresize(lq, 4).clip(0, 1) * 255).round().astype(np.uint8)
    score = calculate_psnr(enlarge(student, lq), gt, 4, test_y_channel=True)
    assert score > calculate_psnr(bicubic, gt, 4, test_y_channel=True) + 0.1
    assert sharpness(enlarge(teacher, lq)) > 1.1 * sharpness(enlarge(student, lq)) > 1.1 * sharpness(bicubic)
    assert os.path.getsize(os.path.join(FOLDER, 'demo_teacher_x4.safetensors')) < 2e6
    assert os.path.getsize(os.path.join(FOLDER, 'demo_student_x4.pth')) < 1e6


def test_realesrganer_opens_the_student(pair):
    from basicsr.archs.srvgg_arch import SRVGGNetCompact
    from realesrgan import RealESRGANer

    model = SRVGGNetCompact(num_feat=16, num_conv=16, upscale=4, act_type='prelu')
    path = os.path.join(FOLDER, 'demo_student_x4.pth')
    image = (pair[1] * 255).round().astype(np.uint8)
    output, _ = RealESRGANer(scale=4, model_path=path, model=model, pre_pad=0, device='cpu').enhance(image)
    ours = enlarge(load('demo_student_x4.pth')[0], pair[1])
    assert np.abs(output.astype(int) - ours.astype(int)).max() <= 1
