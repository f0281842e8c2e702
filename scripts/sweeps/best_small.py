"""Learning curves at the best step size of each optimizer on each task (Fig. 5 and 10 of the paper, small).

1 M steps, 5 seeds. The step sizes are those of the highest average return over 300,000 steps and 3 other seeds, as
the sensitivity sweeps have them in docs/results/; a task that is not there yet is left out.
"""

from scripts.results import best_rates

TABLES = {
    "ppo": ("ppo_sensitivity.csv", "adahessian_ppo.csv"),
    "a2c": ("a2c_sensitivity.csv", "a2c_sensitivity_ant_pendulum.csv", "adahessian_a2c.csv"),
}
SETTINGS = tuple(
    {
        "agent": agent,
        "preset": "paper",
        "env_id": task,
        "optimizer": optimizer,
        "learning_rate": rate,
        "total_timesteps": 1_000_000,
        "checkpoint_interval": 100_000,
        "seed": range(3, 8),  # 0 to 2 have chosen the step sizes
    }
    for agent in ("ppo", "a2c")
    for (task, optimizer), rate in best_rates(*TABLES[agent]).items()
)
