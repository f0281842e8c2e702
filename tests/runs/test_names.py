"""The names that flags take without torch are those of the code."""

from hesscale_rl import names, optim
from hesscale_rl.agents import a2c, ppo, trpo


def test_the_optimizers_of_the_command_line_are_those_that_can_be_made():
    assert set(names.PLAIN) == optim.OPTIMIZERS.keys() and set(names.NEWTON) == optim.NEWTON.keys()


def test_all_agents_have_the_same_spreads_of_their_actions():
    assert ppo.STDS == a2c.STDS == trpo.STDS
