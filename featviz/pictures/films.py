"""Films of an optimization: a GIF always, an MP4 beside it where an encoder is installed.

A GIF plays in every browser and needs only pillow; an MP4 is smaller and has all colors, but needs
ffmpeg: the program, or the one in the package imageio-ffmpeg.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from featviz.errors import UserError, nearest
from featviz.pictures import images

if TYPE_CHECKING:
    from featviz.results import Folder

KINDS = ("gif", "mp4")
SECONDS_PER_FRAME = 0.12
_SHOWN = 128  # films of smaller sides are enlarged, every pixel to a block


def check_kind(kind: str) -> str:
    """The kind of film, if it can be written here. Raises UserError."""
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of film{nearest(kind, KINDS) or '; take gif or mp4'}")
    if kind == "mp4":
        find_encoder()
    return kind


def find_encoder() -> str:
    """The path of ffmpeg. Raises UserError where there is none."""
    program = shutil.which("ffmpeg")
    if program is not None:
        return program
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        found: str = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        return found
    raise UserError(
        "an MP4 needs ffmpeg, which is not on the PATH; install it (or pip install "
        "imageio-ffmpeg), or take --film gif"
    )


def write_gif(
    frames: Sequence[Tensor], path: str | Path, seconds_per_frame: float = SECONDS_PER_FRAME
) -> None:
    """Save pictures (3, H, W) of one size as an endless GIF; the last is shown four times as long.

    Args:
        frames: values in [0, 1].
        path: of the file.
        seconds_per_frame: time between two frames.
    """
    pages = [images.to_pillow(frame) for frame in frames]
    milliseconds = round(1000 * seconds_per_frame)
    durations = [milliseconds] * (len(pages) - 1) + [4 * milliseconds]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=durations, loop=0)


def write_mp4(frames: Sequence[Tensor], path: str | Path) -> None:
    """Save pictures as an MP4 (H.264), as `write_gif` does.

    H.264 needs even sides: at odd ones the last row or column is repeated.

    Raises:
        UserError: where there is no encoder, or it fails.
    """
    height, width = frames[0].shape[-2:]
    tall, wide = height + height % 2, width + width % 2
    pages = [
        F.pad(frame[None], (0, wide - width, 0, tall - height), mode="replicate")[0]
        for frame in [*frames, *([frames[-1]] * 3)]
    ]
    raw = b"".join(
        images.to_uint8(page).permute(1, 2, 0).contiguous().numpy().tobytes() for page in pages
    )
    options = (
        f"-y -loglevel error -f rawvideo -pix_fmt rgb24 -s {wide}x{tall} "
        f"-framerate {1 / SECONDS_PER_FRAME:.6g} -i - "
        "-an -c:v libx264 -crf 16 -pix_fmt yuv420p -movflags +faststart"
    )
    command = [find_encoder(), *options.split(), str(path)]
    done = subprocess.run(command, input=raw, capture_output=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise UserError(f"ffmpeg could not write {Path(path).name}: {reason}; take --film gif")


def add_film(
    folder: Folder,
    stem: str,
    frames: Tensor,
    *,
    kind: str = "gif",
    caption: str,
    alt: str,
    units: Sequence[str] = (),
) -> None:
    """Write a film into a result folder as `stem`.gif, and as MP4 beside it if asked.

    Args:
        folder: the result folder.
        stem: file name without suffix.
        frames: (F, 3, H, W) uint8; small ones are enlarged pixel by pixel.
        kind: "gif" or "mp4".
        caption: for people.
        alt: the same for those who cannot see it.
        units: the units that it shows, as "conv5:12".
    """
    side = max(frames.shape[-2:])
    factor = max(1, -(-_SHOWN // side)) if side < 0.75 * _SHOWN else 1
    pages = [images.enlarge(frame.float() / 255, factor) for frame in frames]
    path = folder.path / f"{stem}.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gif(pages, path)
    if kind == "mp4":
        write_mp4(pages, path.with_suffix(".mp4"))
        caption = f"{caption} The same film as MP4: {stem}.mp4."
    folder.figure(f"{stem}.gif", None, caption=caption, alt=alt, units=units, pixelated=factor > 1)
