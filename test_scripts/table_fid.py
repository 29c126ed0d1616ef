"""The FID tables: methods and widths against upscaling factors, ours beside the paper's.

    sdakd compare -opt options/compare/paper_realesrgan.yml
    python test_scripts/table_fid.py -opt test_scripts/configs/table_fid.yml

Every cell comes from a results.json of `sdakd compare`, or of `sdakd evaluate`, that the YAML names. The paper's
cells come from test_scripts/paper.yml; those that could not be read are empty. It writes table_fid.md, .csv and .tex.
"""

import functools
import sys

from common import main
from quality_tables import Config, make

if __name__ == '__main__':
    sys.exit(main(__doc__, Config, functools.partial(make, table='fid')))
