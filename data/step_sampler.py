"""Order of training images: sample j of step s is a function of (seed, s, j) alone.

The samples of a run are numbered: position j of the global batch of step s is sample number
`s * global_batch + j`. The number decides the image (place `number % num_images` in the permutation
of epoch `number // num_images`) and seeds the augmentation. It does not depend on workers or
processes, so a resumed run continues with exactly the batches of an uninterrupted run.
"""

from collections.abc import Iterator

import numpy as np

_PERMUTATION = 1  # keeps the seeds of permutations apart from those of samples


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of the image indices in one epoch, shape (num_images,), int64."""
    return np.random.default_rng((seed, epoch, _PERMUTATION)).permutation(num_images)


class StepSampler:
    """Batch sampler: for each step, the (image index, sample number) pairs of one process.

    Args:
        num_images: Number of images in the source.
        batch_size_per_process: Samples per step on this process.
        process_index: Rank of this process in [0, num_processes).
        num_processes: Number of processes of the run; the global batch is the sum of their batches.
        seed: Seed of the order, >= 0.
        start_step: First step to yield; the number of steps already done.
        num_steps: Length of the whole run: steps start_step .. num_steps - 1 are yielded.

    Raises:
        ValueError: If a count or the seed is out of range.
    """

    def __init__(
        self,
        num_images: int,
        batch_size_per_process: int,
        process_index: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        start_step: int = 0,
        num_steps: int = 1,
    ) -> None:
        if num_images < 1 or batch_size_per_process < 1:
            raise ValueError(
                f"{num_images} images in batches of {batch_size_per_process}, expected at least 1"
            )
        if not 0 <= process_index < num_processes:
            raise ValueError(
                f"process {process_index} of {num_processes}; expected an index in "
                f"0..{num_processes - 1}"
            )
        if seed < 0 or not 0 <= start_step <= num_steps:
            raise ValueError(
                f"seed={seed}, start_step={start_step}, num_steps={num_steps}; expected seed >= 0 "
                "and 0 <= start_step <= num_steps"
            )
        self.num_images, self.batch_size = num_images, batch_size_per_process
        self.process_index, self.num_processes = process_index, num_processes
        self.seed, self.start_step, self.num_steps = seed, start_step, num_steps

    def __len__(self) -> int:
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start_step, self.num_steps):
            block = step * self.num_processes + self.process_index
            numbers = np.arange(block * self.batch_size, (block + 1) * self.batch_size)
            epochs, places = np.divmod(numbers, self.num_images)
            needed = range(int(epochs[0]), int(epochs[-1]) + 1)
            orders = {
                epoch: orders[epoch]
                if epoch in orders
                else epoch_order(self.num_images, self.seed, epoch)
                for epoch in needed
            }
            indices = np.concatenate([orders[e][places[epochs == e]] for e in needed])
            yield list(zip(indices.tolist(), numbers.tolist(), strict=True))
