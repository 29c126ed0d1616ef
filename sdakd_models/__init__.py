"""Who is trained when: stages, players, terms, the training step.

Importing the package, from the launcher or from anyone's own train.py, registers the models with BasicSR and has its
``parse_options`` check the option files of these models before a run.
"""

import sdakd_arch
import sdakd_data
import sdakd_losses
import sdakd_metrics
from sdakd_models import launch, sdakd_gcfsr_model, sdakd_model, sdakd_realesrgan_model, terms

__all__ = [
    'launch',
    'sdakd_arch',
    'sdakd_data',
    'sdakd_gcfsr_model',
    'sdakd_losses',
    'sdakd_metrics',
    'sdakd_model',
    'sdakd_realesrgan_model',
    'terms',
]

launch.install()
