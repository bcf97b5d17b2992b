"""The load generator on several machines: agents.py, which takes root and network namespaces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
@pytest.mark.timeout(300)
def test_agents_make_one_load_together_and_none_is_lost_in_silence(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "agents.py"), "--keep", str(tmp_path)], capture_output=True, text=True, timeout=280,
    )
    print(done.stdout + done.stderr)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    for words in ("an agent is killed", "a link is cut", "the coordinator was killed", "and took another run", "all ended in order"):
        assert words in done.stdout, words
