"""Operations on rows of hidden states: separate the class row, add rows up by an index."""

from torch import Tensor


def split_class_row(grad: Tensor, class_position: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Split a gradient into class rows (B, D), or (0, D) without classes, and tokens (B, N, D)."""
    if not num_classes:
        return grad.new_empty(0, grad.shape[-1]), grad
    if class_position == "first":
        return grad[:, 0], grad[:, 1:]
    return grad[:, -1], grad[:, :-1]


def add_rows(rows: Tensor, index: Tensor | None, num_rows: int) -> Tensor:
    """Add rows (M, D) up by their index (M,), in a fixed order, to (num_rows, D).

    `index_add_` is serial on a CPU and atomic on CUDA; accumulating `index_put_` sorts on CUDA.
    """
    total = rows.new_zeros(num_rows, rows.shape[-1])
    if index is None:
        return total
    if rows.device.type == "cpu":
        return total.index_add_(0, index.long(), rows)
    return total.index_put_((index.long(),), rows, accumulate=True)
