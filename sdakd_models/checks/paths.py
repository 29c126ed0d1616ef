"""Paths of the options, made absolute."""

from __future__ import annotations

import os


def resolve_paths(opt: dict, root_path: str) -> None:
    """Makes the paths of the options absolute, so that a run can be resumed from any folder.

    A relative path that does not exist in the current folder is looked for under ``root_path``.
    """

    def absolute(path: object) -> object:
        if not isinstance(path, str):
            return path
        path = os.path.expanduser(path)
        here, there = os.path.abspath(path), os.path.join(root_path, path)
        return there if not os.path.exists(here) and os.path.exists(there) else here

    for dataset in opt['datasets'].values():
        for key in ('dataroot_gt', 'dataroot_lq', 'meta_info', 'meta_info_file'):
            value = dataset.get(key)
            if value is not None:
                dataset[key] = [absolute(v) for v in value] if isinstance(value, list) else absolute(value)
    for key, value in opt['path'].items():
        if 'pretrain_network' in key or key == 'resume_state':
            opt['path'][key] = absolute(value)
    blocks = (opt.get('teachers'), opt.get('discriminators'), opt.get('train'))
    entries = [entry for block in blocks if isinstance(block, dict) for entry in block.values()]
    for block in (opt.get('teacher'), *entries):
        for key in ('weights', 'cache'):
            if isinstance(block, dict) and block.get(key):
                block[key] = absolute(block[key])
