"""Ice on the lens.

ImageNet-C uses photographs of frosted windows, which may not be distributed here. Five plates of
ice, drawn from fixed seeds by recipes/draw_frost.py, are laid over pictures instead. They look
similar, but numbers under "frost" are NOT comparable with published ones.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from featviz.corruptions import draws
from featviz.corruptions.draws import Streams
from featviz.pictures import images

PLATES = 5
SIDE = 400
"""pixels of a plate; a picture gets a piece of 224, resized to its longer side and cut"""
_PIECE = 224
_FILE = Path(__file__).parents[1] / "assets" / "frost.png"
_TINT = (0.86, 0.95, 1.0)  # of thin ice; thick ice is white


def ice(streams: Streams, height: int, width: int) -> Tensor:
    """(N, 3, height, width) float32 in [0, 1]: for each stream a random piece of a plate."""
    sheet, spare = _sheet(), SIDE - _PIECE + 1
    pieces = []
    for plate, top, left in draws.integers(streams, (3,), 0, 2**31 - 1).tolist():
        x, y = plate % PLATES * SIDE + left % spare, top % spare
        pieces.append(sheet[:, y : y + _PIECE, x : x + _PIECE])
    side = max(height, width)
    resized = nn.functional.interpolate(
        torch.stack(pieces), (side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[..., :height, :width].clamp(0, 1)


@lru_cache(maxsize=1)
def _sheet() -> Tensor:
    """(3, SIDE, PLATES * SIDE) in [0, 1]: the plates side by side."""
    light, tint = images.read_image(_FILE)[:1], torch.tensor(_TINT).view(3, 1, 1)
    return light * (tint + (1 - tint) * light)
