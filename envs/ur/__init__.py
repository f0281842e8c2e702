"""A UR arm: kinematics, motion, safety, and what drives it: a model, a physics engine, a controller."""
