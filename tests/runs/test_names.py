"""The names that flags take without torch are those of the code."""

from hesscale_rl.agents import a2c, ppo, trpo


def test_all_agents_have_the_same_spreads_of_their_actions():
    assert ppo.STDS == a2c.STDS == trpo.STDS
