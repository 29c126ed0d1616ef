"""What is compared: functions of tensors that return a scalar and own no trainable parameter.

Importing the package registers the losses of its ``*_loss.py`` modules with BasicSR.
"""

import importlib
import pkgutil

from sdakd.compat import import_basicsr

import_basicsr()

for _module in pkgutil.iter_modules(__path__):
    if _module.name.endswith('_loss'):
        importlib.import_module(f'{__name__}.{_module.name}')
