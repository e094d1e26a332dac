"""Name, better direction, group and one-line meaning of every metric."""

from collections.abc import Mapping, Sequence

from .protocol import Better, MetricValue, Protocol

_Entry = tuple[Better, str, str]

_CATALOGUE: dict[str, _Entry] = {
    "gFID": ("lower", "distribution", "Fréchet distance of samples to the reference, Inception"),
    "rFID": ("lower", "distribution", "Fréchet distance of reconstructions to their originals"),
    "FD": ("lower", "distribution", "Fréchet distance on another network's features: not FID"),
    "sFID": ("lower", "distribution", "Fréchet distance on 7 x 17 x 17 spatial features"),
    "KID": ("lower", "distribution", "unbiased squared MMD, cubic kernel; may be negative"),
    "KD": ("lower", "distribution", "kernel distance on another network's features: not KID"),
    "KID_deviation": ("none", "distribution", "standard deviation of KID over its subsets"),
    "KD_deviation": ("none", "distribution", "standard deviation of KD over its subsets"),
    "precision": (
        "higher",
        "distribution",
        "share of these images that lie in the reference manifold",
    ),
    "recall": (
        "higher",
        "distribution",
        "share of the reference that lies in the manifold of these",
    ),
    "density": (
        "higher",
        "distribution",
        "number of reference neighbourhoods around an image, over k",
    ),
    "coverage": (
        "higher",
        "distribution",
        "share of reference neighbourhoods that hold one of these",
    ),
    "class_score": ("higher", "distribution", "exp of mean KL of classes; not Inception Score"),
    "alignment_recall_1": (
        "higher",
        "alignment",
        "share whose own caption is the nearest of all captions; not CLIP",
    ),
    "alignment_recall_10": (
        "higher",
        "alignment",
        "share whose own caption is among the ten nearest of all captions; not CLIP",
    ),
    "alignment_8": (
        "higher",
        "alignment",
        "share whose own caption is the nearest of it and 7 others; 1/8 by chance; not CLIP",
    ),
    "psnr": ("higher", "pixels", "dB, mean over images, on 8-bit pixels"),
    "psnr_non_white": ("higher", "pixels", "dB, pooled over pixels not pure white"),
    "ssim": ("higher", "pixels", "structural similarity, Gaussian window"),
    "ms_ssim": ("higher", "pixels", "multi-scale structural similarity"),
    "mse": ("lower", "pixels", "mean squared error of pixels scaled to [0, 1]"),
    "lpips_vgg": ("lower", "perception", "LPIPS v0.1, VGG16"),
    "lpips_alex": ("lower", "perception", "LPIPS v0.1, AlexNet"),
    "features": ("lower", "perception", "distance of unit-normalised features: not LPIPS"),
    "class_agreement": ("higher", "perception", "share with the same top class as the original"),
    "codebook_usage": ("higher", "codes", "share of joint codes seen"),
    "entropy_bits": ("higher", "codes", "entropy of the joint codes"),
    "perplexity": ("higher", "codes", "effective number of codes"),
    "num_distinct": ("none", "codes", "different joint codes seen"),
    "num_tokens": ("none", "codes", "positions counted"),
    "bits_per_image": ("none", "codes", "capacity of the tokens of an image"),
    "num_stuck_bits": ("lower", "codes", "bits with a mean below .01 or above .99"),
    "bit_correlation_mean_abs": ("lower", "codes", "mean |correlation| over pairs of bits"),
    "bit_correlation_max_abs": ("lower", "codes", "largest |correlation| of a pair of bits"),
    "duplicate_share": ("lower", "memorisation", "share of samples with an earlier twin"),
    "exact_duplicate_share": ("lower", "memorisation", "share with an identical earlier twin"),
    "nearest_feature_distance": (
        "none",
        "memorisation",
        "median distance to the nearest training image, 1 - cosine of features",
    ),
    "nearest_pixel_distance": (
        "none",
        "memorisation",
        "median distance to the nearest training image, RMS of 8-bit pixels",
    ),
}


def describe_metric(name: str) -> _Entry:
    """Better direction, group and meaning of a metric, whatever its `@NET`, `#HASH` and sizes.

    Args:
        name: Name of the metric as reports print it.
    """
    base = name.partition("#")[0]
    for known in (base, base.partition("@")[0]):
        if known in _CATALOGUE:
            return _CATALOGUE[known]
    if base.startswith("ms_ssim_"):
        return "higher", "pixels", "multi-scale SSIM with fewer, smaller windows: not comparable"
    if base.startswith(("entry_", "group_", "bit_")):
        return "none", "codes", "statistic of single codebooks, bits, or groups of at most 8 bits"
    return "none", "distribution", ""


def metric_values(
    runs: Sequence[Mapping[str, float]], protocol: Protocol
) -> dict[str, MetricValue]:
    """Metric values by name, with one value per run and the description of the metric.

    Args:
        runs: Values of each run by metric name; all runs have the same names.
        protocol: Protocol of the measurements.
    """
    values = {}
    for name in runs[0]:
        better, group, about = describe_metric(name)
        values[name] = MetricValue(
            metric=name,
            values=tuple(float(run[name]) for run in runs),
            protocol=protocol.id,
            better=better,
            about=about,
            group=group,
        )
    return values
