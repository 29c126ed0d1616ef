"""LMDB data sets that are shared, forked, sent to other processes, moved, replaced, cut off, and that grow."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import lmdb
import pytest
import yaml
from basicsr.utils import FileClient

from sdakd import cli, evaluate
from sdakd.compat import UserError
from sdakd_data import databases
from sdakd_data.databases import Databases

WRITE = """
import sys, lmdb

folder, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with lmdb.open(folder, map_size=64 << 20) as database, database.begin(write=True) as content:
    content.put(key.encode(), key.encode() * count)
"""


def write(folder, key, count=10):
    """Puts a value into a database as another program does: in a process of its own."""
    subprocess.run([sys.executable, '-c', WRITE, str(folder), key, str(count)], check=True)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / 'a.lmdb', 'ä')
    write(tmp_path / 'a.lmdb', 'b')
    return tmp_path / 'a.lmdb'


def client(folder, key='gt'):
    return FileClient('lmdb', db_paths=[str(folder)], client_keys=[key])


def test_one_database_for_all(folder, tmp_path):
    """Several clients, under several names of the folder, from several threads."""
    (tmp_path / 'here').symlink_to(folder)
    clients = [client(folder), client(tmp_path / 'here', 'lq'), FileClient('lmdb', db_paths=[str(folder)] * 2,
                                                                           client_keys=['gt', 'lq'])]  # fmt: skip
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda number: clients[number % 3].get('ä', ('gt', 'lq')[number % 3 % 2]), range(300))
        assert set(found) == {'ä'.encode() * 10}
    assert databases.environment(folder) is databases.environment(tmp_path / 'here')
    assert clients[0].get_text('ä') == 'ä' * 10
    with pytest.raises(lmdb.Error, match='already open'):  # what BasicSR's own backend meets
        lmdb.open(str(folder), readonly=True, lock=False)


@pytest.mark.parametrize('method', [m for m in ('fork', 'spawn') if m in multiprocessing.get_all_start_methods()])
def test_other_processes_open_their_own(folder, method):
    ours, before = Databases([str(folder)], ['gt']), databases.environment(folder)
    assert ours.get('b', 'gt') == b'b' * 10
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.apply_async(ours.get, ('b', 'gt')).get(60) == b'b' * 10
    assert databases.environment(folder) is before and ours.get('b', 'gt') == b'b' * 10


def test_missing_keys(folder):
    for key in ('gone', '', 'long' * 500):
        with pytest.raises((LookupError, lmdb.BadValsizeError)):
            client(folder).get(key, 'gt')


def test_moved_and_replaced(folder, tmp_path):
    ours = client(folder)
    assert ours.get('b', 'gt') == b'b' * 10
    folder.rename(tmp_path / 'moved.lmdb')
    assert ours.get('b', 'gt') == b'b' * 10  # a run goes on
    write(folder, 'b', 3)
    assert ours.get('b', 'gt') == b'bbb'
    assert client(tmp_path / 'moved.lmdb').get('b', 'gt') == b'b' * 10


def test_another_process_outgrows_the_map(folder):
    ours = client(folder)
    assert ours.get('b', 'gt') == b'b' * 10
    write(folder, 'c', 30 << 20)  # lmdb maps 10 MiB by default
    assert len(ours.get('c', 'gt')) == 30 << 20 and ours.get('b', 'gt') == b'b' * 10
    assert len(FileClient('lmdb', db_paths=str(folder)).get('c', 'default')) == 30 << 20


@pytest.mark.parametrize('bytes_left', [0, 100, 8192, 12_288])
def test_what_is_cut_off_is_refused(folder, tmp_path, bytes_left, capsys):
    """Not read: the process would end with SIGBUS."""
    whole = (folder / 'data.mdb').stat().st_size
    assert whole > 12_288
    os.truncate(folder / 'data.mdb', bytes_left)
    with pytest.raises((OSError, lmdb.Error)):
        client(folder).get('b', 'gt')
    (folder / 'meta_info.txt').write_text('b.png (8,8,3) 1\n')
    with pytest.raises(UserError, match='a.lmdb cannot be opened as an LMDB database'):
        evaluate([str(tmp_path / 'model.pth')], data=[str(folder)], output=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_what_is_no_database(tmp_path):
    for content in (b'', b'no database', bytes(99_999)):
        (tmp_path / 'x.lmdb').mkdir(exist_ok=True)
        (tmp_path / 'x.lmdb' / 'data.mdb').write_bytes(content)
        with pytest.raises((OSError, lmdb.Error)):
            databases.environment(tmp_path / 'x.lmdb')


@pytest.fixture
def packed(world):
    """The world's pairs in databases."""
    for name in ('HR', 'LRx4'):
        assert cli.main(['prepare', 'lmdb', '-i', str(world.root / name), '-o', str(world.root / f'{name}.lmdb')]) == 0
    return world


def in_databases(world, same=False):
    options = world.options()
    for data in options['datasets'].values():
        data['io_backend'] = {'type': 'lmdb'}
        data['dataroot_gt'] = str(world.root / 'HR.lmdb')
        data['dataroot_lq'] = str(world.root / ('HR.lmdb' if same else 'LRx4.lmdb'))
    return options


@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_and_two_validations_of_the_same_databases(packed, workers):
    """Real processes; what is logged equals a training on the folders."""
    losses = {}
    for storage in ('lmdb', 'disk'):
        options = in_databases(packed) if storage == 'lmdb' else packed.options()
        options |= {'name': storage, 'num_gpu': 0, 'val': {'val_freq': 4, 'save_img': False}}
        options['val']['metrics'] = {'psnr': {'type': 'calculate_psnr', 'crop_border': 4}}
        options['datasets']['val_2'] = {**options['datasets']['val'], 'name': 'again'}
        options['datasets']['train']['num_worker_per_gpu'] = workers
        options['train']['stages'] = {'supervised': {'iters': 8, 'lr_g': 1e-3, 'terms': ['pixel']}}
        options['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 8, 'use_tb_logger': False}
        file = packed.root / f'{storage}.yml'
        file.write_text(yaml.safe_dump(options))
        command = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', str(file)]
        done = subprocess.run(command, cwd=packed.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (log,) = (packed.root / 'experiments' / storage).glob('train_*.log')
        lines = log.read_text().splitlines()
        losses[storage] = [line.rpartition('stage')[2] for line in lines if 'l_g_pix' in line]
        losses[storage] += [line.split('psnr')[1] for line in lines if '# psnr' in line]
    assert losses['lmdb'] == losses['disk'] and len(losses['lmdb']) == 8 + 4


def test_one_database_for_both_sides(packed, parse):
    """It is opened; the pairs are what is wrong."""
    with pytest.raises(UserError) as caught:
        parse(packed.write(in_databases(packed, same=True)), packed.root)
    assert 'already open' not in str(caught.value) and 'scale' in str(caught.value)


def test_databases_without_one_of_their_files(packed, parse):
    shutil.move(packed.root / 'LRx4.lmdb' / 'meta_info.txt', packed.root / 'meta_info.txt')
    os.remove(packed.root / 'HR.lmdb' / 'data.mdb')
    with pytest.raises(UserError) as caught:
        parse(packed.write(in_databases(packed)), packed.root)
    for key, name in (('dataroot_gt', 'data.mdb'), ('dataroot_lq', 'meta_info.txt')):
        for phase in ('train', 'val'):
            assert f'datasets:{phase}:{key}: ' in str(caught.value) and f'it has no {name}' in str(caught.value)
