import pickle

import gymnasium
import mujoco
import numpy as np
import pytest

from sim_bridge.tasks import TaskError, describe_task, make_task
from sim_bridge.tasks.mujoco_channels import action_channels
from sim_bridge.tasks.perturbations import PERTURBATIONS

NOISY = ["actuation=0.3", "observation=0.2", "dynamics=0.05"]


def rollout(env, seed, steps=6):
    """Observations and rewards under a fixed action sequence."""
    actions = np.random.default_rng(7).uniform(env.action_space.low, env.action_space.high, (steps, 1))
    observations = [env.reset(seed=seed)[0]]
    rewards = []
    for action in actions.astype(np.float32):
        observation, reward, terminated, _, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if terminated:
            break
    return np.concatenate([np.concatenate(observations), rewards])


def test_same_seed_gives_the_same_perturbed_episode():
    env = make_task("InvertedPendulum-v5", perturbations=NOISY)
    first = rollout(env, seed=3)
    other = rollout(env, seed=4)
    again = rollout(env, seed=3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:4], other[:4])
    np.testing.assert_array_equal(rollout(make_task("InvertedPendulum-v5", perturbations=NOISY), seed=3), first)


def test_order_and_company_of_perturbations_leave_each_noise_stream_alone():
    forward = rollout(make_task("InvertedPendulum-v5", perturbations=NOISY), seed=3)
    backward = rollout(make_task("InvertedPendulum-v5", perturbations=NOISY[::-1]), seed=3)
    np.testing.assert_array_equal(forward, backward)
    alone = make_task("InvertedPendulum-v5", perturbations=["observation=0.2"]).reset(seed=3)[0]
    np.testing.assert_array_equal(forward[:4], alone)


def test_unseeded_reset_continues_the_stream_of_the_last_seed():
    env = make_task("InvertedPendulum-v5", perturbations=["observation=0.2"])
    plain = make_task("InvertedPendulum-v5")

    def factors():
        return [env.reset(seed=seed)[0] / plain.reset(seed=seed)[0] for seed in (3, None)]

    first, second = factors()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(factors(), [first, second])


def test_zero_scale_is_the_unperturbed_task():
    plain = rollout(make_task("InvertedPendulum-v5"), seed=3)
    zero = rollout(
        make_task("InvertedPendulum-v5", perturbations=["actuation=0", "dynamics=0", "observation=0"]), seed=3
    )
    np.testing.assert_array_equal(plain, zero)


class Probe(gymnasium.Env):
    """Observes the action it was given."""

    action_space = gymnasium.spaces.Box(np.float32([-3.0, 0.0]), np.float32([3.0, 1.0]))
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action):
        return np.asarray(action, np.float32), 0.0, False, False, {}


@pytest.fixture
def probe():
    gymnasium.register("Probe-v0", entry_point=Probe)
    yield "Probe-v0"
    del gymnasium.registry["Probe-v0"]


def test_actuation_noise_has_scale_times_half_the_range_and_respects_limits(probe):
    env = make_task(probe, perturbations=["actuation=0.1"])
    env.reset(seed=0)
    middle = np.float32([0.0, 0.5])
    applied = np.array([env.step(middle)[0] for _ in range(4000)])
    np.testing.assert_allclose(applied.mean(axis=0), middle, atol=0.02)
    np.testing.assert_allclose(applied.std(axis=0), [0.3, 0.05], rtol=0.05)
    at_limit = np.array([env.step(np.float32([3.0, 1.0]))[0] for _ in range(200)])
    assert (at_limit <= [3.0, 1.0]).all()
    assert (at_limit < [3.0, 1.0]).any()
    assert (at_limit == [3.0, 1.0]).any()


def test_noise_streams_share_no_numbers_with_each_other_or_the_task(probe):
    middle, sigma = np.float32([0.0, 0.5]), np.float32([0.3, 0.05])
    actuation = make_task(probe, perturbations=["actuation=0.1"])
    actuation.reset(seed=3)
    actuation_draw = (actuation.step(middle)[0] - middle) / sigma
    observation = make_task(probe, perturbations=["observation=0.2"]).reset(seed=3)[0]
    observation_draw = (observation - 0.8) / 0.4
    task_rng = gymnasium.utils.seeding.np_random(3)[0]
    assert not np.allclose(actuation_draw, task_rng.standard_normal(2), atol=1e-3)
    task_rng = gymnasium.utils.seeding.np_random(3)[0]
    assert not np.allclose(observation_draw, task_rng.uniform(size=2), atol=1e-3)
    streams = [wrapper.stream for wrapper in PERTURBATIONS.values()]
    assert len(set(streams)) == len(streams)


def test_observation_noise_is_a_uniform_factor_per_component(probe):
    env = make_task(probe, perturbations=["observation=0.2"])
    env.reset(seed=0)
    seen = np.array([env.step(np.float32([2.0, 1.0]))[0] for _ in range(4000)]) / [2.0, 1.0]
    assert seen.min() >= 0.8 - 1e-6
    assert seen.max() <= 1.2 + 1e-6
    np.testing.assert_allclose(seen.std(axis=0), 0.4 / np.sqrt(12.0), rtol=0.05)
    assert abs(np.corrcoef(seen.T)[0, 1]) < 0.06


def test_observation_noise_widens_the_space_and_not_the_contract():
    env = make_task("Pendulum-v1", perturbations=["observation=0.5"])
    np.testing.assert_allclose(env.observation_space.high, [1.5, 1.5, 12.0])
    np.testing.assert_allclose(env.observation_space.low, [-1.5, -1.5, -12.0])
    assert describe_task(env) == describe_task(make_task("Pendulum-v1"))


def test_dynamics_noise_has_the_stated_spread_and_spares_undriven_bodies():
    env = make_task("Reacher-v5", perturbations=["dynamics=0.5"])
    env.reset(seed=0)
    task = env.unwrapped
    kicks = []
    task.do_simulation = lambda ctrl, frames: kicks.append(task.data.qvel.copy())  # before physics: the kick alone
    while len(kicks) < 2000:
        if len(kicks) % 50 == 49:
            env.reset()  # the time limit
        task.data.qvel[:] = 0.0
        env.step(np.zeros(2, np.float32))
    kicks = np.array(kicks)
    np.testing.assert_allclose(kicks[:, :2].std(axis=0), 0.5, rtol=0.06)
    np.testing.assert_allclose(kicks[:, :2].mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_array_equal(kicks[:, 2:], 0.0)  # the target is no joint of the arm


def test_perturbed_task_survives_pickle_and_gymnasium_make():
    env = make_task("InvertedPendulum-v5", perturbations=NOISY)
    expected = rollout(env, seed=3)
    np.testing.assert_array_equal(rollout(pickle.loads(pickle.dumps(env)), seed=3), expected)
    np.testing.assert_array_equal(rollout(gymnasium.make(env.spec), seed=3), expected)


def test_mujoco_contract_names_the_state_by_joint_in_the_order_of_the_observation():
    env = make_task("Hopper-v5")
    contract = describe_task(env)
    env.reset(seed=0)
    data = env.unwrapped.data
    observation = env.step(np.float32([0.3, -0.2, 0.1]))[0]
    for channel, value in zip(contract.observation, observation, strict=True):
        joint, _, quantity = channel.name.rpartition("_")
        state = {"position": data.joint(joint).qpos, "velocity": data.joint(joint).qvel}[quantity]
        assert value == pytest.approx(float(np.clip(state[0], -10, 10) if quantity == "velocity" else state[0]))
    assert [channel.name for channel in contract.observation][:2] == ["rootz_position", "rooty_position"]
    units = {channel.name: channel.unit for channel in contract.observation}
    assert (units["rootz_position"], units["rooty_position"]) == ("m", "rad")
    assert (units["rootx_velocity"], units["foot_joint_velocity"]) == ("m/s", "rad/s")
    assert [(channel.name, channel.unit, channel.low, channel.high) for channel in contract.action] == [
        ("thigh_joint", "200 N m", -1.0, 1.0),
        ("leg_joint", "200 N m", -1.0, 1.0),
        ("foot_joint", "200 N m", -1.0, 1.0),
    ]
    assert contract.control_period_s == pytest.approx(0.008)


@pytest.mark.parametrize(
    "environment", ["InvertedPendulum-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]
)
def test_every_channel_of_a_v5_task_has_its_own_name_and_a_known_unit(environment):
    env = make_task(environment)
    contract = describe_task(env)
    for channels, space in ((contract.observation, env.observation_space), (contract.action, env.action_space)):
        assert len({channel.name for channel in channels}) == len(channels) == space.shape[0]
        assert all(channel.unit != "unknown" for channel in channels)
        assert all(channel.low < channel.high for channel in channels)


def test_reported_layout_that_does_not_fit_the_model_falls_back_to_indices():
    env = make_task("Hopper-v5")
    env.unwrapped.observation_structure = {"qpos": 6, "qvel": 5}
    assert [channel.name for channel in describe_task(env).observation][-5:] == [f"qvel_{index}" for index in range(5)]
    env.unwrapped.observation_structure = {"qpos": 3}
    assert describe_task(env).observation[10].name == "observation_10"


def test_servo_actuators_are_commanded_in_joint_units():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><body><joint name="lift" type="slide"/><geom size="0.1"/>
        <body><joint name="turn" type="hinge"/><geom size="0.1"/></body></body></worldbody>
        <actuator><position name="a" joint="lift" kp="5"/><velocity name="b" joint="turn" kv="2"/><motor joint="turn"/>
        </actuator></mujoco>"""
    )
    assert action_channels(model) == [("a", "m"), ("b", "rad/s"), ("turn", "N m")]


def test_task_without_mujoco_states_its_own_period():
    assert describe_task(make_task("Pendulum-v1")).control_period_s == 0.05  # its dt, not its render_fps of 30
    assert describe_task(make_task("MountainCarContinuous-v0")).control_period_s == pytest.approx(1 / 30)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("Hoper-v5", "did you mean Hopper-v5"),
        ("Hopper", "did you mean Hopper-v5"),
        ("nothing-like-it", "pprint_registry"),
        ("no_such_module:Foo-v0", "no_such_module"),
        ("CartPole-v1", r"action space of CartPole-v1 must be a flat Box, got Discrete\(2\)"),
        ("Blackjack-v1", "FlattenObservation"),
    ],
)
def test_unusable_environment_is_refused_with_a_cure(environment, expected):
    with pytest.raises(TaskError, match=expected):
        make_task(environment)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "expected"),
    [
        (gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), Probe.action_space, r"got shape \(8, 8, 3\) of uint8"),
        (Probe.observation_space, gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32), "action limits .* finite"),
    ],
)
def test_images_and_unbounded_actions_are_refused(probe, monkeypatch, observation_space, action_space, expected):
    monkeypatch.setattr(Probe, "observation_space", observation_space)
    monkeypatch.setattr(Probe, "action_space", action_space)
    with pytest.raises(TaskError, match=expected):
        make_task(probe)


@pytest.mark.parametrize(
    ("perturbations", "expected"),
    [
        (["wind=1"], "one of actuation, observation, dynamics, got 'wind'"),
        (["actuation"], "name=scale"),
        (["actuation=much"], "must be a number, got 'much'"),
        (["actuation=nan"], "finite"),
        (["dynamics=-1"], ">= 0"),
        (["observation=1.5"], "at most 1"),
        (["actuation=0.1", "actuation=0.2"], "given once"),
    ],
)
def test_malformed_perturbation_is_refused(perturbations, expected):
    with pytest.raises(TaskError, match=expected):
        make_task("InvertedPendulum-v5", perturbations=perturbations)


def test_dynamics_noise_needs_mujoco():
    with pytest.raises(TaskError, match="'dynamics' must have a MuJoCo task, got 'Pendulum-v1'"):
        make_task("Pendulum-v1", perturbations=["dynamics=0.1"])
