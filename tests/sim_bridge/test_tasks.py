import gymnasium
import mujoco
import numpy as np
import pytest

from sim_bridge.tasks import TaskError, describe_task, make_task
from sim_bridge.tasks.mujoco_channels import action_channels
from tests.sim_bridge.probe import Probe


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


def test_units_of_an_actuator_are_those_of_what_the_joint_then_does():
    """Held for ten seconds, a command of 1 turns the joint by what the unit says."""
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><option gravity="0 0 0"/><worldbody>
        <body><joint name="x" type="hinge" damping="1"/><geom size="0.1"/></body>
        <body><joint name="y" type="hinge"/><geom size="0.1"/></body>
        <body><joint name="z" type="hinge" damping="1"/><geom size="0.1"/></body></worldbody>
        <actuator><position name="geared" joint="x" kp="1" gear="5"/><velocity name="wound" joint="y" kv="0.02" gear="10"/>
        <intvelocity name="rate" joint="z" kp="1" actrange="-9 9"/></actuator></mujoco>"""
    )
    assert action_channels(model) == [("geared", "0.2 rad"), ("wound", "0.1 rad/s"), ("rate", "unknown")]
    data = mujoco.MjData(model)
    data.ctrl[:] = 1.0
    mujoco.mj_step(model, data, 5000)
    assert data.qpos[0] == pytest.approx(0.2, rel=0.01)
    assert data.qvel[1] == pytest.approx(0.1, rel=0.01)


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
