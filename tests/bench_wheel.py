"""The wheel in an empty environment: built, installed from the lock, the toy experiment run from an empty folder.

Prints the CPU-seconds of the run; fails where the run fails or writes outside its folder. It installs torch: minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(*command: str, cwd: Path, quiet: bool = True) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=quiet, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout or '')[-2000:]}{(done.stderr or '')[-4000:]}")
    return done.stdout or ""


def main() -> None:
    """Builds, installs, runs."""
    with tempfile.TemporaryDirectory(prefix="kdlab-wheel-") as made:
        folder = Path(made)
        empty = folder / "empty"
        empty.mkdir()
        call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
        (wheel,) = folder.glob("kdlab-*.whl")
        call(sys.executable, "-m", "venv", str(folder / "venv"), cwd=folder)
        python = str(folder / "venv" / "bin" / "python")
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        call(*pip, "-r", str(ROOT / "requirements.lock"), cwd=folder)
        call(*pip, "--no-deps", str(wheel), cwd=folder)
        where = call(python, "-c", "import kdlab; print(kdlab.__file__)", cwd=empty).strip()
        assert Path(where).is_relative_to(folder / "venv"), where
        before = os.times()
        print(call(python, "-m", "kdlab.run", cwd=empty))
        after = os.times()
        cpu_s = (after.children_user + after.children_system) - (before.children_user + before.children_system)
        assert sorted(path.name for path in empty.iterdir()) == ["runs", "store"]
        print(f"wheel {wheel.name}: the toy from an empty folder took {cpu_s:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
