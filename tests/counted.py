"""A net that counts its passes and can fail at one of them."""

from __future__ import annotations

from torch import Tensor, nn


class Counting(nn.Module):
    """Attributes: calls: the passes so far; fail_at: the one that raises RuntimeError."""

    def __init__(self, net: nn.Module, fail_at: int | None = None) -> None:
        super().__init__()
        self.net, self.calls, self.fail_at = net, 0, fail_at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the model gave up")
        logits: Tensor = self.net(x)
        return logits
