"""A UR arm: kinematics, motion, safety, and what drives it: a model, a physics engine, a controller."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .robot import Robot, RobotConfig

__all__ = ["Robot", "RobotConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import robot  # when it is asked for: whoever only looks an arm up need not wait

    return getattr(robot, name)
