"""SDAKD for BasicSR: distils super-resolution GANs into narrow students, as a plugin of BasicSR.

Importing this package makes BasicSR importable on a current torch and torchvision, and does nothing else.
"""

import sys

from sdakd import compat
from sdakd.version import VERSION

__version__ = VERSION

try:
    compat.prepare_imports()
except compat.UserError:
    sys.excepthook = compat.exit_with_sentence  # whoever imports this has had no chance yet to ask for the sentence
    raise
