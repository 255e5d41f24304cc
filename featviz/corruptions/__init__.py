"""The corruptions of ImageNet-C on tensors: noise, blur, weather and what devices do to pictures.

    from featviz.corruptions import CORRUPTIONS, corrupt, corruption_table

15 corruptions and 4 more, five severities each, with the constants of the benchmark at 224 pixels
and of its small sister at 64. Torch and pillow are enough.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", 2019 (arXiv:1903.12261)

Three things differ from the published pictures: the noise comes from other random generators;
frost uses procedural ice, because the benchmark's six photographs may not be distributed here (so
frost's numbers are NOT comparable); and resampling is exact where OpenCV's is in 32nds of a
pixel.
"""

from featviz.corruptions.apply import corrupt
from featviz.corruptions.constants import (
    ALEXNET_ERRORS,
    CORRUPTIONS,
    EXTRA,
    FAMILIES,
    SEVERITIES,
    settings,
)
from featviz.corruptions.mce import mean_corruption_error
from featviz.corruptions.result import Corruptions
from featviz.corruptions.table import corruption_table

__all__ = [
    "ALEXNET_ERRORS",
    "CORRUPTIONS",
    "EXTRA",
    "FAMILIES",
    "SEVERITIES",
    "Corruptions",
    "corrupt",
    "corruption_table",
    "mean_corruption_error",
    "settings",
]
