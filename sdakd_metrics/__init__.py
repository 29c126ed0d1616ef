"""What images are judged by: FD, FID, KID, distances of features, overlap, identity.

Importing the package registers the metrics of whole sets (``set_metrics``) with BasicSR.
"""

from sdakd.compat import import_basicsr

import_basicsr()

from sdakd_metrics import set_metrics  # noqa: E402

__all__ = ['set_metrics']
