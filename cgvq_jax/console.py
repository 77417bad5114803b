"""What a command prints and how it stops: any name, a reader who leaves early, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT


def say(text: str, file: TextIO | None = None) -> None:
  r"""Prints a line at once, to the standard output or to `file`.

  Characters that the stream's encoding lacks, such as those of a file's name that is not UTF-8,
  are printed as escapes ('caf\udce9.png'). Where the reader has left (`cgvq info x | head -1`),
  or the standard error output cannot be written, this line and all later ones are dropped.

  Raises:
    OSError: another output cannot be written, such as one to a full disk.
  """
  stream = sys.stdout if file is None else file
  if stream is None:  # the command was started with a closed output
    return
  encoding = getattr(stream, 'encoding', None) or 'utf-8'
  try:
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=stream, flush=True)
  except OSError as error:
    _drop_output(stream)
    if stream is not sys.stderr and not isinstance(error, BrokenPipeError):
      raise


def _drop_output(stream: TextIO) -> None:
  """Sends what the stream still holds to nowhere, or Python would fail with it when it ends."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, stream.fileno())
  os.close(null)


@contextmanager
def ends_on_interrupt(clean_up: Callable[[], None] = lambda: None) -> Iterator[None]:
  """Ctrl-C ends the process at once, with one line, after `clean_up`.

  An exception would not do: a module that is being loaded turns it into one of its own, Python
  drops it where JAX's callback of the garbage collector is running, and a process that ends while
  XLA's threads work may crash.
  """

  def stop(signum: int, frame: Any) -> None:
    del signum, frame
    clean_up()
    say('\nstopped' if os.isatty(2) else 'stopped', sys.stderr)  # below a bar that is shown
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


_interrupted = False


def raise_on_interrupt() -> None:
  """Ctrl-C and SIGTERM raise KeyboardInterrupt from now on, for `check_interrupt` once more.

  Python drops it where JAX's callback of the garbage collector is running, one time in ten or so.
  """

  def interrupt(signum: int, frame: Any) -> None:
    global _interrupted
    del signum, frame
    _interrupted = True
    raise KeyboardInterrupt

  def report(dropped: Any) -> None:
    if dropped.exc_type is not KeyboardInterrupt:
      sys.__unraisablehook__(dropped)

  sys.unraisablehook = report
  signal.signal(signal.SIGTERM, interrupt)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background
    signal.signal(signal.SIGINT, interrupt)


def check_interrupt() -> None:
  """Raises the KeyboardInterrupt that there was, if Python dropped it; call it now and then."""
  if _interrupted:
    raise KeyboardInterrupt
