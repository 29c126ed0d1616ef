"""What is compared: functions of tensors that return a scalar and own no trainable parameter.

Importing the package registers the losses of its ``*_loss.py`` modules with BasicSR.
"""

import sdakd  # the ground floor makes BasicSR importable
from sdakd_losses import feature_loss

__all__ = ['feature_loss', 'sdakd']
