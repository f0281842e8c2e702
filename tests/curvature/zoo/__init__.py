"""Small models in the shapes in which users write them: plain modules with a forward of their own.

Each is a `Model`; agents.py, vision.py and sequences.py hold them by name, `MODELS` all of them.
"""

from zoo import agents, sequences, vision

MODELS = agents.MODELS | vision.MODELS | sequences.MODELS
