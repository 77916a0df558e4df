import math
import os
import subprocess
import sys

import numpy as np
import pytest

from sim_bridge.tasks import Channel, describe_task, make_task

TASK = "PendulumSwingUp-v0"
GRAVITY, ROD_LENGTH, ROD_MASS, HINGE_DAMPING = 9.81, 1.0, 1.0, 0.02
PERIOD_S = 0.05


@pytest.fixture
def env():
    made = make_task(TASK)
    yield made
    made.close()


def place(env, angle, velocity):
    """Put the rod at an angle from upright, in rad, with an angular velocity in rad/s."""
    env.reset(seed=0)
    env.unwrapped.set_state(np.array([angle]), np.array([velocity]))


def test_contract_names_every_channel_with_its_unit(env):
    contract = describe_task(env)
    assert contract.environment == TASK
    assert [(channel.name, channel.unit) for channel in contract.observation] == [
        ("hinge_cosine", "1"),
        ("hinge_sine", "1"),
        ("hinge_velocity", "rad/s"),
    ]
    assert contract.action == (Channel(name="torque", unit="N m", low=-2.0, high=2.0),)
    assert contract.control_period_s == pytest.approx(PERIOD_S)


def test_observation_is_the_angle_from_upright_and_the_velocity(env):
    place(env, 0.3, -1.5)
    observation, *_ = env.step(np.zeros(1, np.float32))
    angle = float(env.unwrapped.data.qpos[0])
    assert observation == pytest.approx([math.cos(angle), math.sin(angle), env.unwrapped.data.qvel[0]])
    assert 0.15 < angle < 0.3


def test_energy_falls_by_the_work_of_the_hinge_alone_when_there_is_no_torque(env):
    model = env.unwrapped.model
    inertia = float(model.body_inertia[1].max()) + ROD_MASS * (ROD_LENGTH / 2) ** 2
    assert inertia == pytest.approx(ROD_MASS * ROD_LENGTH**2 / 3, rel=0.03)

    def energy(observation):
        return 0.5 * inertia * observation[2] ** 2 + ROD_MASS * GRAVITY * ROD_LENGTH / 2 * observation[0]

    place(env, math.pi / 2, 0.0)
    observations = [np.array([0.0, 1.0, 0.0])]
    observations += [env.step(np.zeros(1, np.float32))[0] for _ in range(100)]
    energies = np.array([energy(observation) for observation in observations])
    squared_velocity = np.array(observations)[:, 2] ** 2
    between = (squared_velocity[1:] + squared_velocity[:-1]) / 2
    lost = np.concatenate([[0.0], np.cumsum(HINGE_DAMPING * between * PERIOD_S)])
    assert energies == pytest.approx(energies[0] - lost, abs=0.03 * ROD_MASS * GRAVITY * ROD_LENGTH)
    assert lost[-1] > 0.05 * ROD_MASS * GRAVITY * ROD_LENGTH
    assert np.abs(np.array(observations)[:, 2]).max() > 4


def test_torque_is_too_weak_to_lift_the_rod_from_hanging(env):
    place(env, math.pi, 0.0)
    cosines = [env.step(np.float32([2.0]))[0][0] for _ in range(100)]
    assert max(cosines) < 0


def test_reward_is_minus_the_stated_cost_of_the_state_acted_in(env):
    observation, _ = env.reset(seed=5)
    actions = np.random.default_rng(0).uniform(-2, 2, 60).astype(np.float32)
    for torque in actions:
        angle = math.atan2(observation[1], observation[0])
        expected = -(angle**2 + 0.1 * observation[2] ** 2 + 0.001 * float(torque) ** 2)
        observation, reward, *_ = env.step(np.array([torque]))
        assert reward == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_torque_beyond_the_limit_acts_and_costs_as_the_limit(env):
    results = []
    for torque in (2.0, 7.0):
        place(env, 0.4, 0.0)
        observation, reward, *_ = env.step(np.float32([torque]))
        results.append([*observation, reward])
    assert results[0] == results[1]


def test_governor_keeps_the_speed_within_8_rad_per_s(env):
    place(env, 0.1, 7.5)
    speeds = []
    for _ in range(150):
        velocity = env.unwrapped.data.qvel[0]
        observation, *_ = env.step(np.float32([math.copysign(2.0, velocity)]))
        speeds.append(abs(observation[2]))
    assert max(speeds) == 8.0


def test_episode_never_terminates_and_is_truncated_at_200_steps(env):
    env.reset(seed=1)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_start_is_anywhere_and_slow_and_the_same_for_the_same_seed(env):
    starts = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    angles = np.arctan2(starts[:, 1], starts[:, 0])
    assert (np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0] > 25).all()
    assert np.abs(starts[:, 2]).max() <= 1.0
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])


def test_same_seed_gives_the_same_episode_under_every_perturbation():
    def episode(seed):
        env = make_task(TASK, perturbations=["actuation=0.3", "observation=0.2", "dynamics=0.05"])
        first, _ = env.reset(seed=seed)
        rows = [first, *(env.step(np.float32([math.sin(step)]))[0] for step in range(40))]
        env.close()
        return np.array(rows)

    np.testing.assert_array_equal(episode(3), episode(3))
    assert not np.allclose(episode(3), episode(4))


def test_picture_shows_the_rod_where_it_is():
    """In a process of its own: MuJoCo binds to one graphics library for good."""
    program = (
        "import numpy as np\n"
        "from sim_bridge.tasks import make_task\n"
        f"env = make_task({TASK!r}, render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "for angle in (0.0, np.pi):\n"
        "    env.unwrapped.set_state(np.array([angle]), np.zeros(1))\n"
        "    red = env.render().astype(int)\n"
        "    rod = red[..., 0] - red[..., 2] > 40\n"
        "    print(*red.shape, rod[: len(rod) // 2].sum() > rod[len(rod) // 2 :].sum(), rod.any())\n"
        "env.close()\n"
    )
    backend = os.environ.get("MUJOCO_GL", "egl")
    shown = subprocess.run(
        [sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "MUJOCO_GL": backend},
    )  # fmt: skip
    if shown.returncode != 0 and "GL" in shown.stderr.strip().splitlines()[-1]:
        pytest.skip(f"MUJOCO_GL={backend} cannot render here: {shown.stderr.strip().splitlines()[-1]}")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split("\n")[:2] == ["480 480 3 True True", "480 480 3 False True"]
