"""Who is trained when: stages, players, terms, degradations, the training step.

Importing the package, from the launcher or from anyone's own train.py, registers the models with BasicSR and has its
``parse_options`` check the option files of these models before a run.
"""

import sdakd_arch
import sdakd_losses
from sdakd_models import cached_dataset, face_dataset, launch, sdakd_gcfsr_model, sdakd_model, sdakd_realesrgan_model

__all__ = [
    'cached_dataset',
    'face_dataset',
    'launch',
    'sdakd_arch',
    'sdakd_gcfsr_model',
    'sdakd_losses',
    'sdakd_model',
    'sdakd_realesrgan_model',
]

launch.install()
