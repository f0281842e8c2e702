"""Wrong inputs of every command, and what is said of each: data of test_wrong_inputs.py."""

PPO = "agent = 'ppo'\n"
SPECS = {  # files of sweeps, by what is wrong with them
    "agent.toml": "agent = 'pppo'",
    "grid.toml": PPO + "learning_rat = [1e-3]",
    "range.toml": PPO + "gamma = [0.9, 2]",
    "type.toml": PPO + "num_steps = [64, 'many']",
    "late.toml": PPO + "seed = [1, 2]\n[[settings]]\n" + PPO + "betas = [[0.9, 0.99], [0.9, 1]]",
    "env.toml": PPO + "env_id = ['Hopper-v5', 'Hoper-v5']",
    "optimizer.toml": PPO + "optimizer = ['adam', 'adahessscale']",
    "task.toml": "agent = 'supervised'\ntask = 'mnist'",
    "epochs.toml": "agent = 'supervised'\nepochs = [1, 0]",
}

# What follows `=>` is in the line. The commands run in a directory that holds `file`, `empty/`, `foreign/` and
# `broken/`, of which the last two look a little like run directories; EMPTY stands for a word without a letter.
ALL_AGENTS = """
--foo => --foo: no such flag
--seeds 1 => did you mean --seed?
--seed => --seed: expected one argument
--seed x => --seed x: must be a whole number
--seed 1.5 => --seed 1.5: must be a whole number
--seed 1e99 => --seed 1e99: must be a whole number
--seed nan => --seed nan: must be a whole number
--seed -1 => --seed -1: must be zero or a positive integer
--seed 1e19 => must be a whole number
--seed 99999999999999999999 => --seed 99999999999999999999: must be a whole number of at most 19 digits
--device tpu => --device tpu: must be cpu, cuda or cuda:N
--device meta => --device meta: must be cpu, cuda or cuda:N
--run-dir file => --run-dir file: this is a file
--run-dir broken => --run-dir broken: not empty
extra => extra: one word too many
-n x => --total-timesteps x: must be a whole number
-n 1e => --total-timesteps 1e: must be a whole number
-n 0 => --total-timesteps 0: must be at least one rollout
-n -1e3 => --total-timesteps -1000: must be at least one rollout
--preset pape => did you mean 'paper'?
--preset x => --preset x: must be one of default, paper
--optimizer adahesscal => --optimizer adahesscal: did you mean 'adahesscale'?
--optimizer nope => --optimizer nope: must be one of adabl89, adaggn-mc,
--optim EMPTY => --optimizer '': must not be empty
--lr -1 => --learning-rate -1.0: must be a positive number
--lr -1e-3 => --learning-rate -0.001: must be a positive number
--lr 0 => --learning-rate 0.0: must be a positive number
--lr nan => --learning-rate nan: must be a positive number
--lr inf => --learning-rate inf: must be a positive number
--lr fast => --learning-rate fast: must be a number
--learning_rate fast => --learning-rate fast: must be a number
--betas 0.9 => --betas: expected 2 arguments
--betas 0.9 1 => --betas (0.9, 1.0): must be two numbers in [0, 1)
--betas 0.9 x => --betas x: must be a number
--eps -1 => --eps -1.0: must be zero or a positive number
--delta 0 => --delta 0.0: must be a positive number
--optimizer kfac --damping 0 => --damping 0.0: must be a positive number
--optimizer newton-cg --damping 2 => --damping 2.0: must be from 0 to 1
--iterations 0 => --iterations 0: must be at least 1
--optimizer torch.optim: => --optimizer torch.optim:: must be a name, or module:Class
--optimizer torch.optim:AdamW --optimizer-arg 3 => '3' is not key=value
--curvature-of los => did you mean 'loss'?
--optimizer kfac --curvature-of kl => --curvature-of kl: must be loss
--num-envs 0 => --num-envs 0: must be at least 1
--num-envs many => --num-envs many: must be a whole number
--num-steps 0 => --num-steps 0: must be at least 1
--num-steps 1e9 => must be at least one rollout, 1000000000 steps
--checkpoint-interval 0 => --checkpoint-interval 0: must be at least 1
--eval-interval -1 => --eval-interval -1: must be zero or a number of steps
--eval-interval often => --eval-interval often: must be a whole number
--eval-episodes 0 => --eval-episodes 0: must be at least 1
--capture-video-interval -1 => --capture-video-interval -1: must be zero or a number of steps
--gamma 1.1 => --gamma 1.1: must be between 0 and 1
--gae-lambda -0.1 => --gae-lambda -0.1: must be between 0 and 1
--vf-coef -1 => --vf-coef -1.0: must be zero or a positive number
--ent-coef nan => --ent-coef nan: must be zero or a positive number
--max-grad-norm inf => --max-grad-norm inf: must be zero or a positive number
--std parametr => --std parametr: did you mean 'parameter'?
--backend compile => --backend compile: did you mean 'compiled'?
--compile --backend compiled => --compile: must be left out
--torch-threads 0 => --torch-threads 0: must be between 1 and
--torch-threads 1e4 => --torch-threads 10000: must be between 1 and
--quiet=yes => yes
--run-dir EMPTY => --run-dir '': must not be empty
--run-dir ~nobody.here/x => there is no such home directory
--resume EMPTY => --resume '': must not be empty
--resume nowhere => --resume nowhere: not a run directory (there is no such directory)
--resume empty => --resume empty: not a run directory (it has no config.json)
--resume file => --resume file: not a run directory
--resume broken => --resume broken/config.json: cannot be read
--resume foreign => --resume foreign/config.json: of another agent or version
--env-id EMPTY => --env-id '': must not be empty
--env Hoper-v5 => --env-id Hoper-v5: no such environment; did you mean Hopper-v5
--env Hopper => --env-id Hopper: has no version in it
--env Hopper-v9 => --env-id Hopper-v9: no such version
--env Hopper-v2 => --env-id Hopper-v2: needs mujoco-py
"""
COMMANDS = {
    "hesscale-rl": """
trian ppo => no command 'trian'; did you mean 'train'?
EMPTY => which command?
fly => no command 'fly'
train => which agent?
train ppp => no agent 'ppp'; did you mean 'ppo'?
doctor --foo => --foo: no such flag (hesscale-rl doctor --help)
doctor now => now: one word too many
""",
    "hesscale-rl train ppo": ALL_AGENTS
    + """
--num-minibatches 7 => --num-minibatches 7: must be a divisor of --num-steps 2048
--num-minibatches 2048 => --num-minibatches 2048: must be below --num-steps 2048
--num-minibatches 0 => --num-minibatches 0: must be at least 1
--update-epochs 0 => --update-epochs 0: must be at least 1
--clip-coef 0 => --clip-coef 0.0: must be a positive number
--target-kl -1 => --target-kl -1.0: must be a positive number
--log-interval 5 => --log-interval: no such flag
""",
    "hesscale-rl train a2c": ALL_AGENTS
    + """
--log-interval 0 => --log-interval 0: must be at least 1
--num-steps 1 --norm-adv => --norm-adv: must be off with --num-steps 1
--clip-coef 0.2 => --clip-coef: no such flag
""",
    "hesscale-rl supervised": """
--foo => --foo: no such flag
--task mnist => --task mnist: did you mean 'mnist-mlp'?
--task x => --task x: must be one of mnist-mlp
--data digit => --data digit: must be one of
--data cifar10 => --data cifar10: must be one of mnist, fashion-mnist, digits for --task mnist-mlp
--data digits --data-dir empty => --data-dir empty: must be left out
--data-dir EMPTY => --data-dir '': must not be empty
--optimizer adamw => did you mean 'adam'?
--lr 0 => --learning-rate 0.0: must be a positive number
--lr x => --learning-rate x: must be a number
--momentum 0.5 => --momentum 0.5: must be left out: it is for --optimizer sgd
--optimizer sgd --momentum 1 => --momentum 1.0: must be a number in [0, 1)
--damping 0.1 => --damping 0.1: must be left out
--splits 2 => --splits 2: must be left out
--blocks 2 => --blocks 2: must be left out
--curvature-rows 8 => --curvature-rows 8: must be left out
--optimizer newton-cg --splits 0 => --splits 0: must be at least 1
--optimizer hessian-free --blocks 0 => --blocks 0: must be at least 1
--batch-size 0 => --batch-size 0: must be at least 1
--batch-size 1e6 => --batch-size 1000000: must be at most
--epochs 0 => --epochs 0: must be at least 1
--epochs x => --epochs x: must be a whole number
--averaging 1 => --averaging 1.0: must be a number in [0, 1)
--checkpoint-interval 0 => --checkpoint-interval 0: must be at least 1
--seed -1 => --seed -1: must be zero
--betas 1 1 => --betas (1.0, 1.0): must be two numbers
--resume nowhere => --resume nowhere: not a run directory
--run-dir EMPTY => --run-dir '': must not be empty
""",
    "hesscale-rl evaluate": """
=> the following arguments are required: run
nope => nope: not a run directory (there is no such directory)
file => file: not a run directory
empty => empty: not a run directory (it has no meta.json)
broken => broken/meta.json: cannot be read
foreign => foreign: made by the agent 'os'; there is a2c, ppo
EMPTY => run '': must not be empty
nope --episodes 0 => --episodes 0: must be at least 1
nope --episodes x => --episodes x: must be a whole number
nope --seed -1 => --seed -1: must be zero or a positive integer
nope --checkpoint => --checkpoint: expected one argument
nope --max-steps 0 => --max-steps 0: must be at least 1
nope --videos => --videos: no such flag; did you mean --video?
nope other => other: one word too many
nope --env-module => --env-module: expected one argument
""",
    "hesscale-rl export": """
=> the following arguments are required: run
nope => nope: not a run directory
empty => empty: not a run directory
foreign => foreign: made by the agent 'os'
nope --onx => --onx: no such flag; did you mean --onnx?
""",
    "hesscale-rl sweep": """
=> the following arguments are required: spec
nope.toml => nope.toml: cannot be read (No such file or directory)
ppo_sensitivity_smal => comes with this package: did you mean 'ppo_sensitivity_small'?
file => file: needs [[settings]] tables
broken/config.json => TOMLDecodeError
grid.toml => grid.toml, settings 1: no flag 'learning_rat': did you mean 'learning_rate'?
range.toml => range.toml, settings 1: --gamma 2.0: must be between 0 and 1
type.toml => type.toml, settings 1: num_steps = [64, 'many']: must be int
late.toml => late.toml, settings 2: --betas (0.9, 1.0): must be two numbers in [0, 1)
env.toml => env.toml, settings 1: --env-id Hoper-v5: no such environment
agent.toml => agent.toml, settings 1: agent 'pppo': did you mean 'ppo'?
optimizer.toml => optimizer.toml, settings 1: no optimizer 'adahessscale': did you mean 'adahesscale'?
task.toml => task.toml, settings 1: no task 'mnist'
epochs.toml => epochs.toml, settings 1: --epochs 0: must be at least 1
nope.toml -j 0 => -j 0: must be at least 1
nope.toml -j 0 --dry-run => -j 0: must be at least 1
nope.toml -j two => --jobs two: must be a whole number
nope.toml --dir EMPTY => --dir '': must not be empty
nope.toml --launcher slum => --launcher slum: did you mean 'slurm'?
nope.toml --launcher ray -j 2 => -j 2: is not for --launcher ray
nope.toml --ray-address a:1 => --ray-address a:1: is not for --launcher local
nope.toml --launcher slurm --time-limit 0 => --time-limit 0: must be at least 1
nope.toml --launcher slurm --slurm cpu => --slurm cpu: must be NAME=VALUE
nope.toml --dry => --dry: no such flag; did you mean --dir?
""",
    "hesscale-rl tune": """
=> the following arguments are required
Hoper-v5 => --env-id Hoper-v5: no such environment
Hopper-v5 --set ent_coef=-1 => --ent-coef -1.0: must be zero or a positive number
Hopper-v5 --set gama=0.9 => no flag 'gama': did you mean 'gamma'?
Hopper-v5 --set num_envs=many => num_envs = 'many': must be int
Hopper-v5 --set gamma => --set gamma: must be NAME=VALUE
Hopper-v5 --set seed=1 => --set seed: has a flag of its own
Hopper-v5 --set clip_coef=inf => inf: must be finite
Hopper-v5 --vary learning_rate=1e-3 => needs two values or more
Hopper-v5 --vary learning_rate=1e-3:1e-4 => 0.001 must be below 0.0001
Hopper-v5 --vary learning_rate=-1:1 => --learning-rate -1.0: must be a positive number
Hopper-v5 --vary num_steps=a:b => must be two numbers, LOW:HIGH
Hopper-v5 --vary optimizer=adam,adamm => no optimizer 'adamm': did you mean 'adam'?
Hopper-v5 --vary gamma=0.9:0.99 --set gamma=0.9 => --set gamma: is in --vary, too
Hopper-v5 --trials 0 => --trials 0: must be at least 1
""",
    "hesscale-rl report": """
=> the following arguments are required: RUNS
nowhere => nowhere: no runs there; name run directories or the folder of a sweep
empty => empty: no runs there
foreign => no 'exp_name'
broken => config.json: cannot be read
nowhere --serve => nowhere: no such directory
file --serve => file: no such directory
empty --serve --port 99999 => --port 99999: must be between 0 and 65535
empty --serve --port x => --port x: must be a whole number
empty --serve -o a.html => -o a.html: is not for --serve, which writes nothing
empty --port 80 => --port 80: is for --serve
empty --bins 0 => --bins 0: must be at least 1
foreign -o file/a => -o file/a.html: cannot be written
empty --x step => --x step: did you mean 'steps'?
""",
    "hesscale-rl completion": """
=> the following arguments are required: shell
bsh => shell bsh: did you mean 'bash'?
""",
    "hesscale-rl benchmark": """
--rounds x => --rounds x: must be a whole number
--round 3 => --round: no such flag; did you mean --rounds?
""",
    "hesscale-rl plot": """
=> the following arguments are required: kind, RUNS
curves => the following arguments are required: RUNS
curve nope => kind curve: did you mean 'curves'?
curves nope => nope: no runs there
curves empty => empty: no runs there
curves broken => broken/config.json: cannot be read
curves foreign => foreign/config.json: no 'exp_name'
curves nope --bins 0 => --bins 0: must be at least 1
curves nope --bins x => --bins x: must be a whole number
curves nope --x step => --x step: did you mean 'steps'?
curves nope --statistic median => --statistic median: did you mean 'mean'?
curves nope --statistic iqm --error se => --error se: is the mean's
curves nope --over delta => --over delta: is for plot sensitivity
curves nope -o EMPTY => --output '': must not be empty
curves nope -o file/x => -o file/x: cannot be written
curves nope --foo => --foo: no such flag
""",
    "hesscale-rl ur": """
=> the following arguments are required: sim|run|train|replay
fly => sim|run|train|replay invalid choice: 'fly'
sim --payload -5 => --payload -5: must be between 0 and 5 kg
sim --payload nan => --payload nan: must be between 0 and 5 kg
sim --payload x => --payload x: must be a number
sim --host x => --host x: no IPv4 address
sim --host 0.0.0.0 => add --listen-anywhere
sim --arm UR5f => --arm UR5f: did you mean 'UR5'? must be one of UR3, UR5,
sim --q 1 2 => --q: expected 6 arguments
sim --foo => --foo: no such flag
run => the following arguments are required: run
run nope => nope: not a run directory
run empty => empty: not a run directory
run foreign => foreign: made by the agent 'os'
run nope --episodes 0 => --episodes 0: must be at least 1
run nope --seed -1 => --seed -1: must be zero or a positive integer
run nope --slow-speed 0 => --slow-speed 0.0: must be a speed above 0
run nope --slow-speed 4 => --slow-speed 4.0: must be a speed above 0
run nope --slow-episodes -1 => --slow-episodes -1: must be zero or more
run nope --max-minutes 0 => --max-minutes 0.0: must be a positive number
run nope --payload 6 => nope: not a run directory
run nope --payload -1 => --payload -1: must be between 0 and 16 kg, which a UR16e carries
run nope --payload nan => --payload nan: must be between 0 and 16 kg
run nope --arm UR5e --payload 6 => --payload 6: must be between 0 and 5 kg, which a UR5e carries
run nope --log empty => --log empty: exists already
run nope --log EMPTY => --log '': must not be empty
run nope --foo => --foo: no such flag
train --task v3 => --task v3: did you mean 'v2'?
train --payload x => --payload x: must be a number
replay => the following arguments are required: log
replay nope => nope: no log of a robot
replay empty --video => empty: no log of a robot
replay nope --vido => --vido: no such flag; did you mean --video?
""",
    "hesscale_rl.scripts.analysis.returns_table": """
=> the following arguments are required: RUNS
nope => nope: no runs there
--foo nope => --foo: no such flag
broken => broken/config.json: cannot be read
EMPTY => RUNS '': must not be empty
""",
    "hesscale_rl.scripts.analysis.compare": """
=> the following arguments are required: RUNS
nope => nope: no runs there
nope --last 0 => --last 0: must be above 0
nope --last 0.333 => --last 0.333: is no whole number of 100 bins
nope --bins 0 => --bins 0: must be at least 1
nope --to EMPTY => --to '': must not be empty
""",
    "hesscale_rl.scripts.analysis.effective_steps": """
nope => nope: no runs there
nope --least x => --least x: must be a number
""",
    "hesscale_rl.scripts.sweeping.pack": """
nope => the following arguments are required: output
nope x.zip => x.zip: must end in .tar.xz
nope x.tar.xz => nope: no runs there
nope x.tar.xz --bins 0 => --bins 0: must be at least 1
nope EMPTY => output '': must not be empty
""",
    "hesscale_rl.studies.throughput": """
--envs Nope-v1 => --env-id Nope-v1: no such environment
--envs => --envs: expected at least one argument
--rounds 0 => --rounds 0: must be at least 1
--rounds x => --rounds x: must be a whole number
--out EMPTY => --out '': must not be empty
--out file/x => -o file/x: cannot be written
--foo => --foo: no such flag
""",
    "hesscale_rl.studies.cost": """
--rounds 1 => --rounds must be at least 2
--batch 0 => --batch at least 1
--experiment usua => --experiment usua: did you mean 'usual'?
--networks nope => --networks nope: not in --experiment usual
-o EMPTY => --output '': must not be empty
--foo => --foo: no such flag
""",
    "hesscale_rl.studies.rl_approximation": """
--points 1 => --points 1: must be at least 2
--seeds 1 1 => --seeds 1 1: one of them is there twice
--seeds x => --seeds x: must be a whole number
-o EMPTY => --output '': must not be empty
""",
}
WITH_TORCH = {  # whose modules are made of it, or import it for the names that they know
    "hesscale_rl.studies.approximation_quality": """
--initialisations 0 => --initialisations 0: must be
--data mnis => --data mnis: did you mean 'mnist'?
--seed -1 => --seed -1: must be from 0
--data-dir EMPTY => --data-dir '': must not be empty
""",
    "hesscale_rl.studies.diagonality": """
--runs 0 => --runs 0: must be at least 1
--step-size 0 => --step-size 0.0: must be positive
--step-size x => --step-size x: must be a number
""",
    "hesscale_rl.studies.supervised_cost": """
--tasks nope => --tasks nope: there is
--updates 1 => --updates 1: must be at least 2
--memory 0 => --memory 0: must be a positive number
-o EMPTY => --output '': must not be empty
""",
}
