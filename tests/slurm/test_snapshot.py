"""The copy of the code that jobs run."""

import os
import subprocess
import sys
from pathlib import Path

from engine.folder import environment
from slurm.cluster import snapshot

ROOT = Path(__file__).parents[2]


def test_a_copy_of_the_code_is_whole_and_made_once(tmp_path):
    copy = snapshot.take(tmp_path)
    commit = (copy / "COMMIT").read_text()
    assert copy == tmp_path / ".code" / commit == snapshot.take(tmp_path)
    assert [path.name for path in (tmp_path / ".code").iterdir()] == [commit], "nothing half made is left"
    assert (copy / "engine/train.py").read_bytes() == (ROOT / "engine/train.py").read_bytes()
    assert not (copy / "tests").exists()
    assert (copy / "results").is_symlink() and (copy / "results").samefile(ROOT / "results")
    code = (
        "import engine.folder.environment, engine.folder.store, slurm.cluster.snapshot, slurm.queue.task; "
        "from pathlib import Path\n"
        "print(engine.folder.environment.commit()); print(engine.folder.store.ROOT); "
        "print(slurm.cluster.snapshot.take(Path('x')))"
    )
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [commit, str(copy), str(copy)], "run from the checkout, the copy is used"
    assert commit.startswith(environment.commit().rstrip("+"))
