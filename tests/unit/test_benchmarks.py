"""The benchmarks, which no other test imports, still find what they import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_benchmark_can_be_imported():
    answer = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)

    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout.lower()
