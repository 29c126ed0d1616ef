"""The ablation: SDAKD without its student discriminator, without stage 1, without feature distillation.

    sdakd compare -opt options/compare/paper_realesrgan.yml
    python test_scripts/table_ablation.py -opt test_scripts/configs/table_ablation.yml

Every cell comes from a results.json of `sdakd compare`, or of `sdakd evaluate`, that the YAML names. The paper's
cells come from test_scripts/paper.yml; those that could not be read are empty. It writes
table_ablation.md, .csv and .tex.
"""

import functools
import sys

from common import main
from quality_tables import Config, make

if __name__ == '__main__':
    sys.exit(main(__doc__, Config, functools.partial(make, table='ablation')))
