"""Files are replaced whole, where links lead, with their mode; pipes are written into."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading

import pytest

from cgvq_jax.io import files


@pytest.fixture
def limited():
  """Files of this process may have 1000 bytes: a write beyond them fails, as on a full disk."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def mode_of(path):
  return stat.S_IMODE(path.stat().st_mode)


def test_links_are_followed(tmp_path):
  (tmp_path / 'inner').mkdir()
  target, link, chain = tmp_path / 'inner' / 'target', tmp_path / 'link', tmp_path / 'chain'
  link.symlink_to('inner/target')
  chain.symlink_to(link)
  for data in (b'new', b'replaced'):  # the link is dangling at first
    files.write_atomically(chain, data)
    assert target.read_bytes() == data
    assert link.is_symlink() and chain.is_symlink() and not target.is_symlink()
  assert [path.name for path in (tmp_path / 'inner').iterdir()] == ['target']


def test_a_circle_of_links_is_an_error(tmp_path):
  (tmp_path / 'a').symlink_to('b')
  (tmp_path / 'b').symlink_to('a')
  with pytest.raises(OSError, match='symbolic links'):
    files.write_atomically(tmp_path / 'a', b'x')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']


@pytest.mark.parametrize('mode', [0o600, 0o644, 0o755, 0o400])
def test_a_file_keeps_its_mode(tmp_path, mode):
  path = tmp_path / 'a'
  path.touch()
  path.chmod(mode)
  files.write_atomically(path, b'new')
  assert (path.read_bytes(), mode_of(path)) == (b'new', mode)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
  before = os.umask(0o027)
  try:
    files.write_atomically(tmp_path / 'a', b'new')
  finally:
    os.umask(before)
  assert mode_of(tmp_path / 'a') == 0o640


def test_a_pipe_is_written_into(tmp_path):
  pipe, got = tmp_path / 'pipe', []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
  reader.start()
  files.write_atomically(pipe, b'new')
  reader.join(10)
  assert got == [b'new'] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_devices_are_written_into():
  files.write_atomically('/dev/null', b'new')
  assert stat.S_ISCHR(os.stat('/dev/null').st_mode)


def test_the_standard_output_goes_on_where_it_is(tmp_path):
  script = (
    'from cgvq_jax.io import files\nprint("before")\n'
    'files.write_atomically("/dev/stdout", b"data\\n")\nprint("after")\n'
  )
  with (tmp_path / 'out').open('wb') as out:
    subprocess.run([sys.executable, '-c', script], stdout=out, check=True)
  assert (tmp_path / 'out').read_text() == 'before\ndata\nafter\n'
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_the_longest_name_that_there_can_be(tmp_path):
  files.write_atomically(tmp_path / ('n' * 255), b'new')
  with pytest.raises(OSError, match='too long'):
    files.write_atomically(tmp_path / ('n' * 256), b'new')
  assert [path.name for path in tmp_path.iterdir()] == ['n' * 255]


def refuse(code):
  def posix_fallocate(*_):
    raise OSError(code, os.strerror(code))

  return posix_fallocate


@pytest.mark.parametrize('has', ['allocation', 'allocation elsewhere', 'none'])
def test_whether_there_is_room(limited, tmp_path, monkeypatch, has):
  if has == 'allocation elsewhere':  # a file system without it
    monkeypatch.setattr(os, 'posix_fallocate', refuse(errno.EOPNOTSUPP), raising=False)
  if has == 'none':  # macOS
    monkeypatch.delattr(os, 'posix_fallocate', raising=False)
  files.check_room(tmp_path, 1000)
  with pytest.raises(OSError, match='File too large') as caught:
    files.check_room(tmp_path, 1001)
  assert caught.value.filename == str(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'posix_fallocate', refuse(errno.ENOSPC), raising=False)
  with pytest.raises(OSError, match='No space left on device'):
    files.check_room(tmp_path, 1)
  with pytest.raises(OSError, match='No such file'):
    files.check_room(tmp_path / 'missing', 1)
