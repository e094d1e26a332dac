"""Feature networks by name: `build_features("efflite0")`.

All networks have the same input contract (`extractor.py`) and load weights only from files that are
on the machine (`weights.py`). Their names are those in metric names, as in `FD@efflite0`.
"""

import difflib
import os

from .efficientnet_lite import EfficientNetLite0
from .extractor import FeatureExtractor
from .inception_fid import InceptionFid
from .lpips_trunks import AlexFeatures, VggFeatures
from .random_features import RandomFeatures
from .resnet50 import ResNet50
from .weight_providers import WeightsError, WeightsMissing
from .weights import available_features, convert_weights, load_weights

__all__ = [
    "FEATURE_NAMES",
    "FeatureExtractor",
    "WeightsError",
    "WeightsMissing",
    "available_features",
    "build_features",
    "convert_weights",
]

FEATURE_NAMES = ("lpips_vgg", "lpips_alex", "efflite0", "inception_fid", "resnet50", "random")


def build_features(name: str, *, path: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """Build the feature network of a name, frozen, on the CPU.

    Args:
        name: `lpips_vgg`, `lpips_alex`, `efflite0`, `inception_fid`, `resnet50` or `random`.
        path: Weight file, used instead of cache and installed packages; not for `random`.

    Raises:
        ValueError: If the name is unknown, or `random` is given a path.
        WeightsMissing: If there are no weights on this machine; names the command to get them.
        WeightsError: If the weights found are damaged, foreign or of an unknown version.
    """
    match name:
        case "lpips_vgg":
            return VggFeatures(load_weights(name, path)).eval()
        case "lpips_alex":
            return AlexFeatures(load_weights(name, path)).eval()
        case "efflite0":
            return EfficientNetLite0(load_weights(name, path)).eval()
        case "inception_fid":
            return InceptionFid(load_weights(name, path)).eval()
        case "resnet50":
            return ResNet50(load_weights(name, path)).eval()
        case "random":
            if path is not None:
                raise ValueError(f"random features have no weight file, found path {str(path)!r}")
            return RandomFeatures().eval()
    near = difflib.get_close_matches(name, FEATURE_NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FEATURE_NAMES)}"
    raise ValueError(f"unknown features {name!r}; {hint}")
