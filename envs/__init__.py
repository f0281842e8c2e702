"""Environments by name: `make` gives one ready for an agent, or says in one line why it cannot.

making.py has the names; checking.py what a single environment is held to, vector.py several of them. Torch and MuJoCo
are imported where they are used: the programs of the arms (envs/ur) do without.
"""

from .making import UR_REACHER, check_id, import_users, make, make_vector, name_of, offer

__all__ = ["UR_REACHER", "check_id", "import_users", "make", "make_vector", "name_of", "offer"]
