"""Other systems' ways on Linux, in every Python process whose PYTHONPATH holds this folder.

The environment variable SIMULATE says which: ``spawn`` and ``forkserver`` are how processes are started, as on macOS
and Windows, and on Linux from Python 3.14 on. ``windows`` also takes away what Windows lacks, and refuses what it
refuses: names, links, signals, files that are replaced or removed while they are open. It is no Windows: paths,
encodings and the libraries' own code for it are Linux's.
"""

import errno
import os
import sys
import types

WANTED = os.environ.get('SIMULATE', '')
OURS = {'sdakd', 'sdakd_arch', 'sdakd_data', 'sdakd_losses', 'sdakd_metrics', 'sdakd_models', 'basicsr', '__main__'}
MODULES = {'fcntl', 'grp', 'posix', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'}
OF_OS = """
    chown chroot ctermid eventfd fchmod fchown fdatasync fork forkpty fstatvfs getegid geteuid getgid getgroups
    getloadavg getpgid getpgrp getpriority getsid getuid killpg lchown lockf memfd_create mkfifo mknod nice openpty
    pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork
    sched_getaffinity sched_setaffinity sched_yield sendfile setgid setpgid setpgrp setpriority setregid setsid
    setuid statvfs sync sysconf tcgetpgrp ttyname uname wait wait3 wait4 writev O_CLOEXEC O_DIRECTORY O_NOFOLLOW
    O_NONBLOCK O_SYNC O_TMPFILE
""".split()
OF_SIGNAL = """
    SIGALRM SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 alarm pause pthread_kill
    pthread_sigmask setitimer sigpending sigwait
""".split()
RESERVED = {'con', 'prn', 'aux', 'nul', *(f'{name}{number}' for name in ('com', 'lpt') for number in range(1, 10))}
KILL = 9


def refuse_name(path):
    """What Windows refuses when something is created."""
    path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ''
    name = os.path.basename(path)
    bad = set(name) & set('<>:"|?*\\') or any(ord(letter) < 32 for letter in name) or name.rstrip(' .') != name
    if not path.startswith('/dev/') and name.strip('.') and (bad or name.partition('.')[0].lower() in RESERVED):
        raise OSError(errno.EINVAL, 'the syntax of a name is incorrect (simulated Windows)', path)


def refuse_open(path, opened):
    """What Windows refuses while a file, or one in a folder, is open in this process."""
    path = os.path.realpath(os.fsdecode(path))
    if any(one == path or one.startswith(f'{path}/') for one in opened()):
        raise PermissionError(errno.EACCES, 'another process uses the file (simulated Windows)', path)


def is_ours(names):
    return names.get('__name__', '').partition('.')[0] in OURS


def hide(module, names):
    """Takes names out of a module for this project and BasicSR; other libraries know that they are on Linux."""
    hidden = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name in hidden:
        delattr(module, name)

    def find(name):
        if name not in hidden or is_ours(sys._getframe(1).f_globals):
            raise AttributeError(f'module {module.__name__!r} has no attribute {name!r} (simulated Windows)')
        return hidden[name]

    module.__getattr__ = find


def become_windows():
    import builtins
    import select
    import shutil
    import signal
    import subprocess

    kill, readlink, listdir, stat = os.kill, os.readlink, os.listdir, os.stat
    quiet = []  # not empty: these are the simulation's own calls

    def caller_is(*names):
        frame, depth = sys._getframe(2), 0
        while frame is not None and depth < 12:
            if frame.f_globals.get('__name__', '').partition('.')[0] in names:
                return True
            frame, depth = frame.f_back, depth + 1
        return False

    def opened():
        quiet.append(1)
        try:
            found = set()
            for number in listdir('/proc/self/fd'):
                try:
                    found.add(readlink(f'/proc/self/fd/{number}'))
                except OSError:
                    continue
            with open('/proc/self/maps', encoding='utf-8', errors='replace') as file:
                found |= {line.split(maxsplit=5)[5].rstrip('\n') for line in file if line.count('/')}
            return found
        finally:
            quiet.pop()

    def hear(event, given):
        if quiet:
            return
        if event in ('open', 'os.listdir', 'os.scandir') and str(given[0]).startswith('/proc'):
            if not caller_is('psutil'):
                raise FileNotFoundError(errno.ENOENT, 'there is no /proc (simulated Windows)', given[0])
        elif event == 'open' and isinstance(given[2], int) and given[2] & os.O_CREAT:
            refuse_name(given[0])
        elif event == 'os.mkdir':
            refuse_name(given[0])
        elif event in ('os.remove', 'os.rename') and not caller_is('tempfile'):
            refuse_open(given[0], opened)
            if event == 'os.rename':
                refuse_name(given[1])
                refuse_open(given[1], opened)

    def looking(function):
        def look(path, *given, **more):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith('/proc') and not quiet:
                if not caller_is('psutil'):
                    raise FileNotFoundError(errno.ENOENT, 'there is no /proc (simulated Windows)', path)
            return function(path, *given, **more)

        return look

    def no_link(source, target, **_):
        raise OSError(errno.EINVAL, 'a required privilege is not held by the client (simulated Windows)', source)

    load = builtins.__import__

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if name in MODULES and is_ours(globals or {}):
            raise ModuleNotFoundError(f'No module named {name!r} (simulated Windows)', name=name)
        return load(name, globals, locals, fromlist, level)

    class Popen(subprocess.Popen):
        def __init__(self, *given, preexec_fn=None, pass_fds=(), **more):
            if preexec_fn is not None or pass_fds:
                raise ValueError('preexec_fn and pass_fds are not supported on Windows platforms (simulated)')
            super().__init__(*given, **more)

        def send_signal(self, number):
            if number != signal.SIGTERM:
                raise ValueError(f'unsupported signal: {number} (simulated Windows)')
            self.kill()

        def terminate(self):
            self.kill()

        def kill(self):
            if self.poll() is None:
                kill(self.pid, KILL)

    hide(os, OF_OS)
    hide(signal, OF_SIGNAL)
    hide(select, ('poll', 'epoll'))
    signal.SIGBREAK = signal.SIGTTIN  # of the same number
    os.supports_dir_fd.clear()
    shutil._use_fd_functions = False
    os.kill = lambda pid, number: kill(pid, KILL)  # TerminateProcess, whatever the number
    os.symlink = os.link = no_link
    os.stat, os.readlink, os.lstat = looking(stat), looking(readlink), looking(os.lstat)
    builtins.__import__ = import_
    subprocess.Popen = Popen
    sys.addaudithook(hear)


# what a test has defined is found by processes that it spawns, whatever else is called `tests` on their path
tests = types.ModuleType('tests')
tests.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
sys.modules.setdefault('tests', tests)

if WANTED:
    import multiprocessing

    multiprocessing.set_start_method('spawn' if WANTED == 'windows' else WANTED)
if WANTED == 'windows':
    become_windows()
