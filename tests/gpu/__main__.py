"""All that only a machine with a GPU can show: ``python tests/gpu``, with the options of ``benches/gpu.py``.

Needs a wheel of coresident, torch with CUDA, pytest and safetensors; diffusers for one of the figures.
First the suite, then the figures, of which ``--out`` keeps a table.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Returns what is wrong with the suite, or else with the bench."""
    suite = subprocess.run([sys.executable, "-m", "pytest", str(HERE)], check=False)
    bench = [sys.executable, str(HERE.parents[1] / "benches/gpu.py"), *sys.argv[1:]]
    return suite.returncode or subprocess.run(bench, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
