"""What is compared: functions of tensors that return a scalar and own no trainable parameter.

Importing the package registers the losses of its ``*_loss.py`` modules with BasicSR.
"""

from sdakd.compat import import_basicsr

import_basicsr()

from sdakd_losses import crd_loss, dcd_loss, feature_loss, imitation_loss, omgd_loss  # noqa: E402

__all__ = ['crd_loss', 'dcd_loss', 'feature_loss', 'imitation_loss', 'omgd_loss']
