"""MuJoCo's own warnings: to Python's logging instead of stderr and a MUJOCO_LOG.TXT in the working directory."""

import logging
import re

import mujoco

_log = logging.getLogger("hesscale_rl.envs.mujoco")
_seen: set[str] = set()


def quiet() -> None:
    """Route MuJoCo's warnings to the logger "hesscale_rl.envs.mujoco", for the whole process.

    The one about `settotalmass`, which every HalfCheetah prints when its model is compiled, is dropped: a user can do
    nothing about it. A handler that was set already stays.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    # Numbers aside: a simulation gone unstable repeats the same words with another time at every step.
    kind = re.sub(r"\d[\d.]*", "#", message)
    if "settotalmass" not in message and kind not in _seen:
        _seen.add(kind)
        _log.warning("%s", message.strip())
