"""Copy a finished tiny run into the package: `python -m ernie45.recipes.ship runs/tiny`.

Knows nothing about training. Replaces assets/tiny, assets/samples and the README's pictures.
"""

import shutil
import sys
from pathlib import Path

from ernie45.config.errors import CheckpointError
from ernie45.recipes.plots import CURVES, EXPERTS
from ernie45.recipes.tiny import RUN_FOLDER

MAX_BYTES = 3_000_000
PACKAGE = Path(__file__).parents[1]


def ship(out: Path, package: Path = PACKAGE) -> None:
    """Model files to package/assets/tiny, samples to package/assets/samples, plots to docs/images beside the package.

    CheckpointError if the run is not finished or the model is above 3 MB.
    """
    run = out / RUN_FOLDER
    files = [file for file in sorted(out.iterdir()) if file.is_file()] if out.is_dir() else []
    if not (out / "config.json").is_file() or not (run / "samples" / "samples.json").is_file():
        raise CheckpointError(f"run ({out}) is not finished; run `ernie45 train tiny --out {out}` first")
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        raise CheckpointError(f"model in {out} has {size:,} bytes; the package takes at most {MAX_BYTES:,}")
    _replace(package / "assets" / "tiny", files)
    _replace(package / "assets" / "samples", sorted((run / "samples").iterdir()))
    images = package.parent / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in (CURVES, EXPERTS):
        shutil.copy(run / name, images / f"tiny-{name}")


def _replace(folder: Path, files: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder / file.name)


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
