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
_LAZY_EXPORTS = {
    "AttackOptions": "featviz.attacks.options",
    "IconSettings": "featviz.atlas.icons",
    "LayoutSettings": "featviz.atlas.layout",
    "Model": "featviz.models.model",
    "Preprocessing": "featviz.pictures.preprocessing",
    "TrainSettings": "featviz.training.loop",
    "UserError": "featviz.errors",
    "ablate": "featviz.ablation.ablate",
    "accentuate": "featviz.from_picture.accentuation",
    "activation_maps": "featviz.maps.activation_maps",
    "activations": "featviz.embedding.activations",
    "align_maps": "featviz.atlas.aligned",
    "activation_grid": "featviz.concepts.grid",
    "apgd": "featviz.attacks.apgd",
    "apgd_targeted": "featviz.attacks.apgd",
    "as_pictures": "featviz.data.from_python",
    "attack": "featviz.attacks.attack",
    "attribute": "featviz.attribution.attribute",
    "attribute_layer": "featviz.ablation.attribute_layer",
    "audit": "featviz.robustness.audit",
    "autoattack": "featviz.attacks.autoattack",
    "bim": "featviz.attacks.pgd",
    "build_atlas": "featviz.atlas.build",
    "build_class_atlas": "featviz.atlas.classes",
    "build_explorer": "featviz.explorer.build",
    "build_gallery": "featviz.gallery.build",
    "build_report": "featviz.gallery.report",
    "build_index": "featviz.neighbors.exact",
    "caricature": "featviz.from_picture.caricature",
    "classify": "featviz.classification.classify",
    "compare": "featviz.comparison.compare",
    "compare_results": "featviz.comparison.compare",
    "concept_cards": "featviz.concepts.cards",
    "check_attributions": "featviz.attribution.sanity",
    "corrupt": "featviz.corruptions",
    "corruption_table": "featviz.corruptions",
    "ddn": "featviz.attacks.fmn",
    "deepdream": "featviz.from_picture.deepdream",
    "deepfool": "featviz.attacks.deepfool",
    "describe_activations": "featviz.descriptions.activations",
    "describe_units": "featviz.descriptions.units",
    "draw_facets": "featviz.maximization.facets",
    "embed": "featviz.embedding.extract",
    "embed_layers": "featviz.embedding.extract",
    "ensemble": "featviz.attacks.ensemble",
    "evaluate": "featviz.training.evaluation",
    "expanded_weights": "featviz.circuits.expanded",
    "external_attack": "featviz.attacks.external",
    "fgsm": "featviz.attacks.pgd",
    "find_concepts": "featviz.concepts.find",
    "find_neighbors": "featviz.neighbors.find",
    "fmn": "featviz.attacks.fmn",
    "interpolate": "featviz.maximization.interpolation",
    "invert": "featviz.from_picture.inversion",
    "kernel_growth": "featviz.kernels.growth",
    "kernel_sheet": "featviz.kernels.sheet",
    "load": "featviz.models.load",
    "maximize": "featviz.maximization.maximize",
    "maximize_directions": "featviz.maximization.maximize",
    "maximize_layers": "featviz.maximization.maximize",
    "maximize_objective": "featviz.maximization.maximize",
    "measure_statistics": "featviz.maximization.image_statistics",
    "mi_fgsm": "featviz.attacks.pgd",
    "minimal": "featviz.attacks.minimal",
    "noise": "featviz.attacks.square",
    "open_concepts": "featviz.concepts.result",
    "open_pictures": "featviz.data.datasets",
    "open_store": "featviz.embedding.store",
    "pack": "featviz.data.packing",
    "patch": "featviz.attacks.patch",
    "patch_activations": "featviz.ablation.patch_activations",
    "patch_times_kernel": "featviz.maps.patch_times_kernel",
    "pgd": "featviz.attacks.pgd",
    "read_batch": "featviz.data.labeled",
    "read_image": "featviz.pictures.images",
    "read_picture": "featviz.pictures.images",
    "sample_pictures": "featviz.data.samples",
    "shape_bias": "featviz.robustness.shape_bias",
    "sigma_zero": "featviz.attacks.sigma_zero",
    "spatial": "featviz.attacks.spatial",
    "square": "featviz.attacks.square",
    "summarize": "featviz.models.summary",
    "superdeepfool": "featviz.attacks.deepfool",
    "top_patches": "featviz.maps.top_patches",
    "trace_circuit": "featviz.circuits.trace",
    "trace_circuits": "featviz.circuits.trace",
    "train": "featviz.training.loop",
    "transfer_matrix": "featviz.robustness.transfer",
    "universal": "featviz.attacks.universal",
    "wrap": "featviz.models.wrap",
}

__all__ = sorted([*_LAZY_EXPORTS, "__version__"])  # noqa: PLE0605 - a list of strings, sorted

if TYPE_CHECKING:
    from featviz.ablation.ablate import ablate as ablate
    from featviz.ablation.attribute_layer import attribute_layer as attribute_layer
    from featviz.ablation.patch_activations import patch_activations as patch_activations
    from featviz.atlas.aligned import align_maps as align_maps
    from featviz.atlas.build import build_atlas as build_atlas
    from featviz.atlas.classes import build_class_atlas as build_class_atlas
    from featviz.atlas.icons import IconSettings as IconSettings
    from featviz.atlas.layout import LayoutSettings as LayoutSettings
    from featviz.attacks.apgd import apgd as apgd
    from featviz.attacks.apgd import apgd_targeted as apgd_targeted
    from featviz.attacks.attack import attack as attack
    from featviz.attacks.autoattack import autoattack as autoattack
    from featviz.attacks.deepfool import deepfool as deepfool
    from featviz.attacks.deepfool import superdeepfool as superdeepfool
    from featviz.attacks.ensemble import ensemble as ensemble
    from featviz.attacks.external import external_attack as external_attack
    from featviz.attacks.fmn import ddn as ddn
    from featviz.attacks.fmn import fmn as fmn
    from featviz.attacks.minimal import minimal as minimal
    from featviz.attacks.options import AttackOptions as AttackOptions
    from featviz.attacks.patch import patch as patch
    from featviz.attacks.pgd import bim as bim
    from featviz.attacks.pgd import fgsm as fgsm
    from featviz.attacks.pgd import mi_fgsm as mi_fgsm
    from featviz.attacks.pgd import pgd as pgd
    from featviz.attacks.sigma_zero import sigma_zero as sigma_zero
    from featviz.attacks.spatial import spatial as spatial
    from featviz.attacks.square import noise as noise
    from featviz.attacks.square import square as square
    from featviz.attacks.universal import universal as universal
    from featviz.attribution.attribute import attribute as attribute
    from featviz.attribution.sanity import check_attributions as check_attributions
    from featviz.circuits.expanded import expanded_weights as expanded_weights
    from featviz.circuits.trace import trace_circuit as trace_circuit
    from featviz.circuits.trace import trace_circuits as trace_circuits
    from featviz.classification.classify import classify as classify
    from featviz.comparison.compare import compare as compare
    from featviz.comparison.compare import compare_results as compare_results
    from featviz.concepts.cards import concept_cards as concept_cards
    from featviz.concepts.find import find_concepts as find_concepts
    from featviz.concepts.grid import activation_grid as activation_grid
    from featviz.concepts.result import open_concepts as open_concepts
    from featviz.corruptions import corrupt as corrupt
    from featviz.corruptions import corruption_table as corruption_table
    from featviz.data.datasets import open_pictures as open_pictures
    from featviz.data.from_python import as_pictures as as_pictures
    from featviz.data.labeled import read_batch as read_batch
    from featviz.data.packing import pack as pack
    from featviz.data.samples import sample_pictures as sample_pictures
    from featviz.descriptions.activations import describe_activations as describe_activations
    from featviz.descriptions.units import describe_units as describe_units
    from featviz.embedding.activations import activations as activations
    from featviz.embedding.extract import embed as embed
    from featviz.embedding.extract import embed_layers as embed_layers
    from featviz.embedding.store import open_store as open_store
    from featviz.errors import UserError as UserError
    from featviz.explorer.build import build_explorer as build_explorer
    from featviz.from_picture.accentuation import accentuate as accentuate
    from featviz.from_picture.caricature import caricature as caricature
    from featviz.from_picture.deepdream import deepdream as deepdream
    from featviz.from_picture.inversion import invert as invert
    from featviz.gallery.build import build_gallery as build_gallery
    from featviz.gallery.report import build_report as build_report
    from featviz.kernels.growth import kernel_growth as kernel_growth
    from featviz.kernels.sheet import kernel_sheet as kernel_sheet
    from featviz.maps.activation_maps import activation_maps as activation_maps
    from featviz.maps.patch_times_kernel import patch_times_kernel as patch_times_kernel
    from featviz.maps.top_patches import top_patches as top_patches
    from featviz.maximization.facets import draw_facets as draw_facets
    from featviz.maximization.image_statistics import measure_statistics as measure_statistics
    from featviz.maximization.interpolation import interpolate as interpolate
    from featviz.maximization.maximize import maximize as maximize
    from featviz.maximization.maximize import maximize_directions as maximize_directions
    from featviz.maximization.maximize import maximize_layers as maximize_layers
    from featviz.maximization.maximize import maximize_objective as maximize_objective
    from featviz.models.load import load as load
    from featviz.models.model import Model as Model
    from featviz.models.summary import summarize as summarize
    from featviz.models.wrap import wrap as wrap
    from featviz.neighbors.exact import build_index as build_index
    from featviz.neighbors.find import find_neighbors as find_neighbors
    from featviz.pictures.images import read_image as read_image
    from featviz.pictures.images import read_picture as read_picture
    from featviz.pictures.preprocessing import Preprocessing as Preprocessing
    from featviz.robustness.audit import audit as audit
    from featviz.robustness.shape_bias import shape_bias as shape_bias
    from featviz.robustness.transfer import transfer_matrix as transfer_matrix
    from featviz.training.evaluation import evaluate as evaluate
    from featviz.training.loop import TrainSettings as TrainSettings
    from featviz.training.loop import train as train


def __getattr__(name: str) -> Any:
    if name in _LAZY_EXPORTS:
        value = getattr(importlib.import_module(_LAZY_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'featviz' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
