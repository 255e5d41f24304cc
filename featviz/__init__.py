"""featviz: look inside an image classifier.

    import featviz
    model = featviz.load("alexnet-mini")
    featviz.maximize(model, "conv5", units=[3, 12]).save("run/conv5")

Names are imported when first used, so that `import featviz` needs neither torch nor a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that has it
_HOMES = {
    "UserError": "featviz.errors",
    "accentuate": "featviz.maximization.accentuation",
    "activation_maps": "featviz.maps",
    "activations": "featviz.models.layers",
    "align_maps": "featviz.atlas.aligned",
    "attack": "featviz.adversarial.attacks",
    "attribute": "featviz.attribution",
    "audit": "featviz.adversarial.audit",
    "build_atlas": "featviz.atlas.build",
    "build_class_atlas": "featviz.atlas.classes",
    "build_gallery": "featviz.gallery.build",
    "build_index": "featviz.neighbors.exact",
    "caricature": "featviz.maximization.dream",
    "corrupt": "featviz.adversarial.corruptions",
    "corruption_table": "featviz.adversarial.corruptions",
    "deepdream": "featviz.maximization.dream",
    "draw_facets": "featviz.maximization.facets",
    "embed": "featviz.embedding.extract",
    "embed_layers": "featviz.embedding.extract",
    "evaluate": "featviz.training",
    "find_neighbors": "featviz.neighbors.find",
    "interpolate": "featviz.maximization.interpolation",
    "invert": "featviz.maximization.inversion",
    "kernel_growth": "featviz.growth",
    "kernel_sheet": "featviz.kernels",
    "load": "featviz.models.load",
    "maximize": "featviz.maximization.optimize",
    "maximize_directions": "featviz.maximization.optimize",
    "maximize_objective": "featviz.maximization.optimize",
    "measure_statistics": "featviz.maximization.statistics",
    "minimal": "featviz.adversarial.minimal",
    "open_pictures": "featviz.datasets",
    "open_store": "featviz.embedding.store",
    "patch": "featviz.adversarial.patch",
    "patch_times_kernel": "featviz.maps",
    "read_image": "featviz.images",
    "read_square": "featviz.images",
    "sample_pictures": "featviz.samples",
    "spatial": "featviz.adversarial.spatial",
    "suite": "featviz.adversarial.suite",
    "summarize": "featviz.models.summary",
    "top_patches": "featviz.examples",
    "train": "featviz.training",
    "transfer_matrix": "featviz.adversarial.transfer",
    "universal": "featviz.adversarial.universal",
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605 - a list of strings, sorted

if TYPE_CHECKING:
    from featviz.adversarial.attacks import attack as attack
    from featviz.adversarial.audit import audit as audit
    from featviz.adversarial.corruptions import corrupt as corrupt
    from featviz.adversarial.corruptions import corruption_table as corruption_table
    from featviz.adversarial.minimal import minimal as minimal
    from featviz.adversarial.patch import patch as patch
    from featviz.adversarial.spatial import spatial as spatial
    from featviz.adversarial.suite import suite as suite
    from featviz.adversarial.transfer import transfer_matrix as transfer_matrix
    from featviz.adversarial.universal import universal as universal
    from featviz.atlas.aligned import align_maps as align_maps
    from featviz.atlas.build import build_atlas as build_atlas
    from featviz.atlas.classes import build_class_atlas as build_class_atlas
    from featviz.attribution import attribute as attribute
    from featviz.datasets import open_pictures as open_pictures
    from featviz.embedding.extract import embed as embed
    from featviz.embedding.extract import embed_layers as embed_layers
    from featviz.embedding.store import open_store as open_store
    from featviz.errors import UserError as UserError
    from featviz.examples import top_patches as top_patches
    from featviz.gallery.build import build_gallery as build_gallery
    from featviz.growth import kernel_growth as kernel_growth
    from featviz.images import read_image as read_image
    from featviz.images import read_square as read_square
    from featviz.kernels import kernel_sheet as kernel_sheet
    from featviz.maps import activation_maps as activation_maps
    from featviz.maps import patch_times_kernel as patch_times_kernel
    from featviz.maximization.accentuation import accentuate as accentuate
    from featviz.maximization.dream import caricature as caricature
    from featviz.maximization.dream import deepdream as deepdream
    from featviz.maximization.facets import draw_facets as draw_facets
    from featviz.maximization.interpolation import interpolate as interpolate
    from featviz.maximization.inversion import invert as invert
    from featviz.maximization.optimize import maximize as maximize
    from featviz.maximization.optimize import maximize_directions as maximize_directions
    from featviz.maximization.optimize import maximize_objective as maximize_objective
    from featviz.maximization.statistics import measure_statistics as measure_statistics
    from featviz.models.layers import activations as activations
    from featviz.models.load import load as load
    from featviz.models.summary import summarize as summarize
    from featviz.neighbors.exact import build_index as build_index
    from featviz.neighbors.find import find_neighbors as find_neighbors
    from featviz.samples import sample_pictures as sample_pictures
    from featviz.training import evaluate as evaluate
    from featviz.training import train as train


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'featviz' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
