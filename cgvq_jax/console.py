"""What a command prints and how it stops: any name, a reader who leaves early, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT


def say(text: str, file: TextIO | None = None) -> None:
  r"""Prints a line at once, to the standard output or to `file`.

  Characters that the stream's encoding lacks, such as those of a file's name that is not UTF-8,
  are printed as escapes ('caf\udce9.png'). Where the reader has left (`cgvq info x | head -1`),
  this line and all later ones are dropped.

  Raises:
    OSError: the line cannot be written for any other reason, such as a full disk.
  """
  stream = sys.stdout if file is None else file
  if stream is None:  # the command was started with a closed output
    return
  encoding = getattr(stream, 'encoding', None) or 'utf-8'
  try:
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=stream, flush=True)
  except BrokenPipeError:
    _drop_output(stream)
  except OSError:
    _drop_output(stream)
    raise


def _drop_output(stream: TextIO) -> None:
  """Sends what the stream still holds to nowhere, or Python would fail with it when it ends."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, stream.fileno())
  os.close(null)


@contextmanager
def stops_quietly() -> Iterator[None]:
  """Ctrl-C ends the process at once with one line; for the time in which it loads its modules.

  An exception would not do: it may arise within a module that turns it into one of its own.
  """

  def stop(signum: int, frame: Any) -> None:
    del signum, frame
    os.write(2, b'stopped\n')
    os._exit(INTERRUPTED)

  before = signal.getsignal(signal.SIGINT)
  if before is not signal.default_int_handler:  # a process in the background may ignore it
    yield
    return
  signal.signal(signal.SIGINT, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
