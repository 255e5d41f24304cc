"""The pretended card refuses every analysis in which a move between devices is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from every_analysis import ANALYSES, small_pictures
from mutants import plant
from pretend_cuda import DeviceError, PretendedCuda

import featviz

MUTANTS = (
    ("models.model:Model.forward", "pictures.to(self.device)", "pictures", "ddn"),
    ("models.model:Model.check", "batch.to(self.device)", "batch", "attribute"),
    ("attribution.methods:deletion", ".to(x.device)", "", "attribute"),
    ("circuits.measure:_positions", ".to(maps.device)", "", "trace_circuit"),
    ("circuits.measure:_taken", ".cpu()", "", "trace_circuit"),
    ("ablation.attribute_layer:_attribute", ".to(recorded.output.device)", "", "attribute_layer"),
    ("ablation.patch_activations:_patch", ", device=base.device", "", "patch_activations"),
    ("concepts.grid:_attribution", ".to(codes.device)", "", "activation_grid"),
    ("maps.patch_products:_window", ".double().cpu()", ".double()", "patch_times_kernel"),
    ("descriptions.units:_Read.__call__", ".float().cpu()", ".float()", "describe_units"),
    ("neighbors.exact:Index._candidates", ".to(self.device)", "", "neighbors"),
    ("embedding.pieces:as_stored", ".detach().cpu()", ".detach()", "embed"),
    ("atlas.tsne:Attraction.__init__", ".to(device, torch.float32)", ".float()", "build_atlas"),
    ("atlas.tsne:_ring", ", device=device", "", "layout by the grid"),
    ("maximization.loop:_optimize_batch", ".to(model.std)", "", "maximize by none"),
    ("training.loop:_Run.gradients", "batch.to(self.device)", "batch", "train"),
    ("attacks.spatial:moved", "motions.to(pictures.device)", "motions", "spatial"),
    (
        "attacks.square:SquareL2.change",
        ", self.x.device)",
        ", torch.device('cpu'))",
        "square in l2",
    ),
)


@pytest.mark.long
@pytest.mark.parametrize(("name", "old", "new", "analysis"), MUTANTS)
def test_a_move_left_out_is_refused(
    name: str, old: str, new: str, analysis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, name, old, new)
    with PretendedCuda(), pytest.raises(DeviceError):
        ANALYSES[analysis](featviz.load("alexnet-mini"), small_pictures(), tmp_path / "store")
