"""What torchrun has told this process of the others that it started, without importing torch."""

from __future__ import annotations

import os

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SECONDS = 5.0  # to reach torchrun's store


def several() -> bool:
    """Whether torchrun has started more than this process."""
    return all(name in os.environ for name in _TOLD) and os.environ["WORLD_SIZE"] != "1"


def is_first() -> bool:
    """Whether this is the process that writes: the only one, or the first of several."""
    return not several() or os.environ["RANK"] == "0"


def here() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several() else 1


def speaks() -> bool:
    """Whether this process says why all of them end: the first that asks does, others do not."""
    if not several():
        return True
    from datetime import timedelta

    import torch.distributed as dist

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            timeout=timedelta(seconds=_SECONDS),
            wait_for_workers=False,
        )
        return int(store.add(f"featviz has spoken {attempt}", 1)) == 1
    except (RuntimeError, ValueError):  # no store of torchrun's: twice is better than never
        return True
