"""Scaled AdaHesScale that sets its own step sizes, in the paper's settings on its five small tasks.

1 M steps, 10 seeds that took no part in any choice. Others at their best step sizes are those of best_small.py.
"""

# Five seeds first, and the slowest task last, so that a sweep which is not done yet has whole panels.
ENV_IDS = ("HalfCheetah-v5", "InvertedDoublePendulum-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")

SETTINGS = tuple(
    {
        "agent": agent,
        "preset": "paper",
        "env_id": task,
        "optimizer": "scaled-adahesscale",
        "desired_kl": 0.03,
        "anneal_lr": True,
        "total_timesteps": 1_000_000,
        "checkpoint_interval": 500_000,
        "seed": seeds,
    }
    for seeds in (range(10, 15), range(15, 20))
    for agent in ("ppo", "a2c")
    for task in ENV_IDS
)
