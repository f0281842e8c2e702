"""A directory is held by one process, with flock or without."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from hesscale_rl.errors import InputError
from hesscale_rl.system import locks
from hesscale_rl.system.locks import alone, held, lock


@pytest.fixture(params=["flock", errno.ENOLCK, errno.ENOSYS, errno.EBADF, errno.EOPNOTSUPP, "no fcntl"])
def system(request, monkeypatch):
    """A file system with flock, without it for many a reason, and an operating system that never had it."""
    monkeypatch.setattr(locks, "_told", set())
    if request.param == "no fcntl":
        monkeypatch.setattr(locks, "fcntl", None)
    elif request.param != "flock":

        def refuse(handle, how):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    return request.param


def test_one_holds_it_and_the_next_is_refused_until_it_lets_go(system, tmp_path, capsys):
    assert not held(tmp_path) and not held(tmp_path / "nowhere")
    mine = lock(tmp_path, "")
    assert held(tmp_path)
    with pytest.raises(InputError, match="it is mine"):
        lock(tmp_path, "it is mine")
    mine.release()
    mine.release()
    assert not held(tmp_path) and list(tmp_path.iterdir()) == []
    told = capsys.readouterr().err
    assert told.count("\n") == (type(system) is int) and ("no locks on this file system" in told) == bool(told)


def test_who_must_wait_is_told_once(system, tmp_path, monkeypatch):
    mine, waits = lock(tmp_path, ""), []
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: mine.release())
    with alone(tmp_path, lambda: waits.append(1)):
        assert held(tmp_path)
    assert waits == [1] and not held(tmp_path)


def test_what_a_killed_process_leaves_is_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    code = "import os, pathlib, sys; from hesscale_rl.system import locks; locks.fcntl = None\n"
    code += "held = locks.lock(pathlib.Path(sys.argv[1]), ''); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -9
    assert (tmp_path / ".lock").exists() and not held(tmp_path)
    mine = lock(tmp_path, "")
    owner = json.loads((tmp_path / ".lock").read_text())
    assert owner["pid"] == os.getpid()
    mine.release()
    (tmp_path / ".lock").write_text(json.dumps(owner | {"started": "another time"}))  # the number was used again
    assert not held(tmp_path)


def test_a_process_of_another_machine_is_believed_as_long_as_something_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / ".lock"
    for content in (json.dumps({"host": "not " + socket.gethostname(), "pid": 1, "started": ""}), "half of a na"):
        path.write_text(content)
        assert held(tmp_path)
        long_ago = time.time() - 2 * locks.FORGOTTEN
        os.utime(path, (long_ago, long_ago))
        assert not held(tmp_path)
        lock(tmp_path, "").release()


def test_a_directory_that_takes_no_file_is_no_reason_not_to_train(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "NAME", "no/such/folder")
    lock(tmp_path, "").release()
