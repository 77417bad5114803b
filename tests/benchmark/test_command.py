"""The command: rows as JSON, and scenes that cannot be measured here."""

from __future__ import annotations

import json

from cgvq_jax.benchmark import __main__ as benchmark


def test_the_command_says_what_it_skips_and_writes_rows(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv('CGVQ_KODAK', str(tmp_path / 'nowhere'))
  arguments = ['rasterize', '--scenes', 'small', 'kodim15-1k', '--implementations', 'xla']
  benchmark.main([*arguments, '--json', str(tmp_path / 'rows.json')])
  printed = capsys.readouterr().out
  assert '| kodim15-1k | xla | skipped: ' in printed and '| small | xla | 500 |' in printed
  (row,) = json.loads((tmp_path / 'rows.json').read_text())
  assert row['scene'] == 'small' and row['value_and_grad_ms'] > 0
