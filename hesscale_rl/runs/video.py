"""Pictures of an episode as an mp4; the extra hesscale-rl[video]."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import InputError


def need_video(flag: str = "--video") -> None:
    """InputError, which begins with `flag`, where no video can be written; else let MuJoCo draw without a screen.

    Before an episode is played for nothing, and before MuJoCo is imported: the way it draws cannot change later.
    """
    try:
        import imageio  # noqa: F401
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise InputError(f"{flag}: needs imageio-ffmpeg, pip install 'hesscale-rl[video]'") from None
    os.environ.setdefault("MUJOCO_GL", "egl")


def cannot_draw(flag: str, env_id: str, error: BaseException) -> InputError:
    """Return what to raise for what an environment raised when a picture was asked of it."""
    cause = " ".join(str(error).split())[:120] or type(error).__name__
    gl = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}; egl needs a driver, osmesa the library of that name"
    return InputError(f"{flag}: {env_id} cannot be drawn: {cause} ({gl})")


class Film:
    """An mp4 that is written picture by picture, arrays [H, W, 3] of bytes, and is there when the film is left.

    `append` takes a picture; `count` is how many it has. What is left by an exception leaves no file.
    """

    def __init__(self, path: Path, fps: float):
        self.path, self.fps, self.count = path, fps, 0
        self._part = path.with_name(f".{path.name}")

    def __enter__(self) -> Self:
        import imageio

        self.path.parent.mkdir(exist_ok=True)
        # A side that is not a multiple of 16 would be scaled: some players cannot show it otherwise.
        self._writer: Any = imageio.get_writer(self._part, format="mp4", fps=self.fps, macro_block_size=16)
        return self

    def append(self, picture: Any) -> None:
        """Add a picture."""
        self._writer.append_data(picture)
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is None and self.count:
            self._part.replace(self.path)
        self._part.unlink(missing_ok=True)
