"""`python basicsr/train.py -opt options/....yml`, run from a checkout of this project.

Nothing else lives in this folder and it has no `__init__.py`: BasicSR is the installed package. An entry of `sys.path`
that holds this folder would make Python take it for a namespace package and hide an editable installation of BasicSR,
so this checkout leaves the path until BasicSR has been imported.
"""

import os.path as osp
import sys

ROOT = osp.realpath(osp.join(__file__, osp.pardir, osp.pardir))


def _is_ours(entry):
    return osp.realpath(entry or '.') in (ROOT, osp.join(ROOT, 'basicsr'))


def main():
    sys.path[:] = [entry for entry in sys.path if not _is_ours(entry)]
    sys.path.append(ROOT)
    from sdakd import compat  # the ground floor makes BasicSR importable; it does not import it

    sys.excepthook = compat.exit_with_sentence
    sys.path.remove(ROOT)
    if compat.has_basicsr():
        from sdakd import option_files  # needs no torch, so that a mistake of the YAML alone is told at once

        option_files.check_command_line()
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.cli import train

    return train(root_path=ROOT)


if __name__ == '__main__':
    sys.exit(main())
