"""What is trained on: degradations, data sets, what is known of their images, the pool of pairs, teachers' answers.

Importing the package registers its data sets with BasicSR.
"""

from sdakd.compat import import_basicsr

import_basicsr()

from sdakd_data import cached_dataset, databases, face_dataset  # noqa: E402

__all__ = ['cached_dataset', 'databases', 'face_dataset']
