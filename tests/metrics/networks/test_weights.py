"""Where weights come from, and every way in which that can go wrong."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tessella import building
from tessella.metrics.networks import weights
from tessella.metrics.networks.build import build_features
from tessella.metrics.networks.provider_files import (
    ForeignFile,
    read_efflite0,
    read_inception_fid,
    read_lpips,
)
from tessella.metrics.networks.weight_providers import PROVIDERS, PipProvider
from tessella.metrics.networks.weights import (
    WeightsError,
    WeightsMissing,
    available_features,
    cache_path,
    convert_weights,
    load_weights,
)
from tessella.metrics.perceptual import build_perceptual


def needs(name: str) -> pytest.MarkDecorator:
    provider = PROVIDERS[name]
    return pytest.mark.skipif(provider.locate() is None, reason=f"needs {provider.command}")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_spec", lambda package: None)


def test_cache_path_follows_the_environment(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_path("efflite0") == empty_cache / "weights" / "efflite0.safetensors"
    monkeypatch.delenv("TESSELLA_CACHE")
    expected = Path.home() / ".cache" / "tessella" / "weights" / "efflite0.safetensors"
    assert cache_path("efflite0") == expected


@pytest.mark.usefixtures("no_providers")
@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_missing_weights_name_the_command(name: str) -> None:
    with pytest.raises(WeightsMissing) as caught:
        build_features(name)
    assert PROVIDERS[name].command in str(caught.value)
    assert PROVIDERS[name].requirement in str(caught.value)
    with pytest.raises(WeightsMissing, match=re.escape(PROVIDERS[name].command)):
        convert_weights(name)
    assert available_features() == dict.fromkeys(PROVIDERS, False) | {"random": True}


@pytest.mark.usefixtures("no_providers")
def test_auto_falls_back_to_random_and_says_so() -> None:
    assert build_perceptual("auto").id == "features@random"


def test_explicit_path_must_exist(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"no file .*nothing\.safetensors"):
        build_features("efflite0", path=tmp_path / "nothing.safetensors")


def test_wrong_provider_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lpips_alex", "efflite0"):
        provider = PROVIDERS[name]
        assert isinstance(provider, PipProvider)
        file = tmp_path / provider.package / provider.file
        file.parent.mkdir(parents=True)
        (tmp_path / provider.package / "__init__.py").write_text("raise RuntimeError('imported')")
        file.write_bytes(b"tampered")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lpips_alex", "efflite0"):
        with pytest.raises(WeightsError, match=r"sha256 .* is not that of .*==0\.1\.0"):
            build_features(name)


def test_unpickler_allows_arrays_only() -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, ("1",))

    with pytest.raises(ForeignFile, match=r"builtins\.eval, which is not allowed"):
        read_lpips(pickle.dumps(Malicious()))
    with pytest.raises(ForeignFile, match="not a readable pickle"):
        read_lpips(b"\x80\x04garbage")
    with pytest.raises(ForeignFile, match="unexpected entry Extra_0/kernel"):
        read_lpips(pickle.dumps({"Extra_0": {"kernel": np.zeros(1, np.float32)}}))


def archive(pickled: bytes) -> bytes:
    """A zip file like TorchScript's, with this pickle and one storage of two floats."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("net/data.pkl", pickled)
        file.writestr("net/data/0", np.array([1, 2], "<f4").tobytes())
    return buffer.getvalue()


def script_pickle(field: str, *, stride: int = 1, count: int = 2) -> bytes:
    """The pickle of a TorchScript module `Net` whose attribute `conv` has one tensor."""
    storage = f"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI{count}\ntQ"
    rebuilt = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n(I2\nt(I{stride}\ntI00\nNtR"
    new = "c__torch__.net\nNet\n)\x81"
    text = f"\x80\x02{new}}}Vconv\n{new}}}V{field}\n{rebuilt}sbsb."
    return text.encode("latin-1")


def test_script_archive_gives_tensors_and_runs_nothing() -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, ("1",))

    tensors = read_inception_fid(archive(script_pickle("var")))
    assert list(tensors) == ["convs.0.variance"]
    assert tensors["convs.0.variance"].tolist() == [1.0, 2.0]
    with pytest.raises(ForeignFile, match=r"builtins\.eval, which is not allowed"):
        read_inception_fid(archive(pickle.dumps(Malicious())))
    with pytest.raises(ForeignFile, match=r"unexpected tensor conv\.gamma"):
        read_inception_fid(archive(script_pickle("gamma")))
    with pytest.raises(ForeignFile, match="contiguous tensor"):
        read_inception_fid(archive(script_pickle("var", stride=3)))
    with pytest.raises(ForeignFile, match="unexpected storage"):
        read_inception_fid(archive(script_pickle("var", count=3)))
    for damaged in (b"garbage", archive(b"")[:40], archive(b"\x80\x02garbage")):
        with pytest.raises(ForeignFile, match="not a readable TorchScript archive"):
            read_inception_fid(damaged)


def test_state_dict_keys_are_never_ignored(tmp_path: Path) -> None:
    file = tmp_path / "state.pth"
    torch.save({"_fc.bias": torch.zeros(1000), "_blocks.0._se.weight": torch.zeros(1)}, file)
    with pytest.raises(ForeignFile, match=r"unexpected keys _blocks\.0\._se\.weight"):
        read_efflite0(file.read_bytes())
    with pytest.raises(ForeignFile, match="not a readable state dict"):
        read_efflite0(b"garbage")


@needs("efflite0")
def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path) -> None:
    tensors = dict(load_weights("efflite0").tensors)
    tensors["blocks.0.extra"] = tensors.pop("stem.gamma")
    tensors["classifier.bias"] = torch.zeros(10)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_features("efflite0", path=tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match="unexpected x"):
        build_features("efflite0", path=tmp_path / "tiny.safetensors")
    message = str(caught.value)
    assert "missing stem.gamma" in message
    assert "unexpected blocks.0.extra" in message
    assert "classifier.bias is (10,), expected (1000,)" in message


@needs("lpips_alex")
def test_cache_wins_over_provider_and_keeps_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = build_features("lpips_alex")
    written = convert_weights("lpips_alex")
    assert written == cache_path("lpips_alex")
    assert [p.name for p in written.parent.iterdir()] == [written.name], "no temporary left"
    monkeypatch.setattr(building, "find_spec", lambda package: None)
    cached = build_features("lpips_alex")
    assert cached.weights_id == direct.weights_id == PROVIDERS["lpips_alex"].sha256[:8]
    batch = torch.rand(1, 3, 48, 48)
    assert torch.equal(cached.pooled(batch), direct.pooled(batch))


@needs("lpips_alex")
@needs("efflite0")
@pytest.mark.parametrize("name", ["lpips_alex", "efflite0"])
def test_half_precision_cache(name: str) -> None:
    direct = build_perceptual(name)
    written = convert_weights(name, dtype=torch.float16)
    dtypes = {value.dtype for value in load_file(written).values() if value.ndim > 1}
    assert dtypes == {torch.float16}
    half = build_perceptual(name)
    assert half.extractor.weights_id == f"{PROVIDERS[name].sha256[:8]}-fp16"
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4, 3, 64, 64, generator=rng) * 2 - 1 for _ in range(2))
    tolerance = 2e-5 if name == "lpips_alex" else 2e-3  # half has 11 bits; Lite0 is 40 layers deep
    torch.testing.assert_close(half(a, b), direct(a, b), rtol=0, atol=tolerance)


@needs("lpips_alex")
def test_truncated_and_foreign_cache_files(tmp_path: Path) -> None:
    file = convert_weights("lpips_alex")
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"truncated or not a safetensors .*delete it"):
            build_features("lpips_alex")
        with pytest.raises(WeightsError):
            build_perceptual("lpips_alex")
    file.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(WeightsError, match="does not hold the known weights of lpips_alex"):
        build_features("lpips_alex")
    own = build_features("lpips_alex", path=file)  # asked for by path: allowed, under its own id
    assert own.weights_id != PROVIDERS["lpips_alex"].sha256[:8]


@needs("lpips_alex")
def test_failed_conversion_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "alex.safetensors"
    convert_weights("lpips_alex", out)
    before = out.read_bytes()

    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_weights("lpips_alex", out)
    assert out.read_bytes() == before
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@needs("lpips_alex")
def test_provider_file_by_path() -> None:
    path = PROVIDERS["lpips_alex"].locate()
    assert path is not None
    assert build_features("lpips_alex", path=path).weights_id == "443c5bc3"
    with pytest.raises(WeightsError, match="sha256"):
        build_features("lpips_vgg", path=path)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="did you mean 'lpips_vgg'"):
        load_weights("lpips_vg")
    with pytest.raises(ValueError, match=r"expected torch\.float32 or torch\.float16"):
        convert_weights("efflite0", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        convert_weights("efflite0", "efflite0.bin")
