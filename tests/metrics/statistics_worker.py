"""One rank of the run behind `test_processes.py`: `statistics_worker.py RANK RANKS RENDEZVOUS OUT`.

Every rank sees its share of the same images and features, interleaved and in one piece; the objects
are gathered as accelerate's `gather_object` does it and merged in the order of the ranks. With one
rank this is the single process that sees everything.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from tessella.metrics.bit_correlation import BitStatistics
from tessella.metrics.codes import CodeStatistics
from tessella.metrics.duplicates import DuplicateFinder
from tessella.metrics.feature_bank import FeatureBank
from tessella.metrics.frechet import FrechetStatistics, frechet_distance
from tessella.metrics.image import ReconstructionMeter
from tessella.metrics.kid import kernel_distance, kernel_distance_full
from tessella.metrics.manifold import manifold_metrics

IMAGES, FEATURES, BITS, BATCH = 61, 24, 6, 4
"""61 images: no share is a whole number of batches."""
SHARES = ("interleaved", "contiguous")


def share(kind: str, rank: int, ranks: int) -> Tensor:
    """Numbers of the images that a rank sees."""
    numbers = torch.arange(IMAGES)
    return numbers[rank::ranks] if kind == "interleaved" else numbers.tensor_split(ranks)[rank]


def data() -> dict[str, Tensor]:
    """Everything there is to see; a few images repeat earlier ones."""
    rng = torch.Generator().manual_seed(0)
    originals = torch.rand(IMAGES, 3, 24, 24, generator=rng) * 2 - 1
    originals[40:45] = originals[3:8].flip(3)
    return {
        "features": torch.randn(IMAGES, FEATURES, generator=rng) + 3,
        "originals": originals,
        "reconstructions": (originals + 0.2 * torch.randn(originals.shape, generator=rng)).clamp(
            -1, 1
        ),
        "bits": torch.randint(2, (IMAGES, 5, BITS), generator=rng),
        "labels": torch.randint(10, (IMAGES,), generator=rng),
    }


def collected(numbers: Tensor, seen: dict[str, Tensor]) -> dict[str, Any]:
    """Statistics of some images, in batches."""
    found: dict[str, Any] = {
        "frechet": FrechetStatistics(FEATURES),
        "bank": FeatureBank(FEATURES),
        "codes": CodeStatistics((2,) * BITS),
        "bits": BitStatistics(BITS),
        "duplicates": DuplicateFinder(),
        "meter": ReconstructionMeter(),
    }
    for few in numbers.split(BATCH):
        part = {name: values[few] for name, values in seen.items()}
        found["frechet"].update(part["features"])
        found["bank"].update(part["features"], few, part["labels"])
        found["codes"].update(part["bits"])
        found["bits"].update(part["bits"])
        pixels = ((part["originals"] + 1) * 127.5).round().to(torch.uint8)
        found["duplicates"].update(pixels, few)
        found["meter"].update(part["originals"], part["reconstructions"])
    return found


def gathered(own: dict[str, Any], ranks: int) -> dict[str, Any]:
    """All ranks' objects merged in the order of the ranks."""
    if ranks == 1:
        return own
    everyone: list[dict[str, Any]] = [{}] * ranks
    dist.all_gather_object(everyone, own)
    merged, *others = everyone
    for other in others:
        for name, value in other.items():
            merged[name].merge(value)
    return merged


def measured(found: dict[str, Any]) -> dict[str, Tensor]:
    """What the statistics say, by name; those named `exact` may not differ by a bit."""
    reference = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(9)) + 2.9
    statistics, bank = FrechetStatistics(FEATURES), found["bank"]
    statistics.update(reference)
    rng = torch.Generator().manual_seed(1)
    kid = kernel_distance(bank.features, reference, subsets=5, subset_size=20, rng=rng)
    manifold = manifold_metrics(bank.features, reference)
    twins = found["duplicates"].result()
    values: dict[str, Any] = {
        "frechet.distance": frechet_distance(found["frechet"], statistics),
        "frechet.scatter": found["frechet"].scatter,
        "exact.bank.features": bank.features,
        "exact.bank.numbers": bank.numbers,
        "exact.bank.labels": bank.labels,
        "exact.kid": [kid.mean, kid.std, kernel_distance_full(bank.features, reference)],
        "exact.manifold": [
            manifold.precision,
            manifold.recall,
            manifold.density,
            manifold.coverage,
        ],
        "exact.manifold.nearest": manifold.nearest_distance,
        "exact.codes": list(found["codes"].compute().values()),
        "exact.bits": found["bits"].correlation,
        "exact.duplicates.twins": twins.has_twin,
        "exact.duplicates.pairs": [(p.distance, p.first, p.second) for p in twins.pairs],
        "meter": found["meter"].state(),
    }
    return {
        name: (value if isinstance(value, Tensor) else torch.tensor(value).double()).clone()
        for name, value in values.items()
    }


def main() -> None:
    """Run as one rank."""
    rank, ranks, rendezvous, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if ranks > 1:
        method = f"file://{rendezvous}"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=ranks)
    seen = data()
    found = {
        f"{kind}.{name}": value
        for kind in SHARES
        for name, value in measured(
            gathered(collected(share(kind, rank, ranks), seen), ranks)
        ).items()
    }
    save_file(found, output)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
