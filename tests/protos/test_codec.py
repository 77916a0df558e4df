import dataclasses
import hashlib
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import policy_pb2 as pb
from protos.codec import (
    Channel,
    Samples,
    Summary,
    VectorError,
    channels_from_proto,
    channels_to_proto,
    checked_vector,
    contract_fingerprint,
    message_vector,
    samples_from_proto,
    samples_to_proto,
    summary_from_proto,
    summary_to_proto,
)

OBSERVATION = (Channel(name="angle", unit="rad", low=-3.14), Channel(name="speed", unit="rad/s"))
ACTION = (Channel(name="torque", unit="N m", low=-1.0, high=1.0),)
NAMES = [channel.name for channel in OBSERVATION]


def fingerprint(observation=OBSERVATION, action=ACTION, control_period_s=0.02):
    return contract_fingerprint(observation, action, control_period_s)


def test_fingerprint_is_the_hash_of_the_canonical_json():
    # Written by hand, so that another implementation can be checked against the same text.
    text = (
        '{"action":[{"high":1.0,"low":-1.0,"name":"torque","unit":"N m"}],"control_period_s":0.02,'
        '"observation":[{"high":null,"low":-3.14,"name":"angle","unit":"rad"},'
        '{"high":null,"low":null,"name":"speed","unit":"rad/s"}]}'
    )
    assert fingerprint() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"observation": OBSERVATION[::-1]},
        {"observation": OBSERVATION[:1]},
        {"observation": (dataclasses.replace(OBSERVATION[0], name="angel"), OBSERVATION[1])},
        {"observation": (dataclasses.replace(OBSERVATION[0], unit="deg"), OBSERVATION[1])},
        {"observation": (dataclasses.replace(OBSERVATION[0], low=-math.inf), OBSERVATION[1])},
        {"action": (dataclasses.replace(ACTION[0], high=1.0000001),)},
        {"observation": ACTION, "action": OBSERVATION},
        {"control_period_s": 0.0200001},
    ],
)
def test_fingerprint_changes_with_every_part_of_the_contract(changed):
    assert fingerprint(**changed) != fingerprint()


def test_fingerprint_survives_the_wire():
    messages = [channels_to_proto(channels) for channels in (OBSERVATION, ACTION)]
    parsed = [[pb.Channel.FromString(m.SerializeToString()) for m in part] for part in messages]
    assert contract_fingerprint(*parsed, 0.02) == fingerprint()
    assert channels_from_proto(parsed[0]) == OBSERVATION


def test_fingerprint_knows_one_zero_and_no_nan():
    zeros = [fingerprint(action=(Channel(name="x", unit="", low=zero, high=1),)) for zero in (0.0, -0.0, 0)]
    assert len(set(zeros)) == 1
    with pytest.raises(ValueError, match="low limit of channel 'x'"):
        fingerprint(action=(Channel(name="x", unit="", low=math.nan),))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_vector_survives_the_wire_exactly(values):
    message = pb.Observation.FromString(pb.Observation(values=values).SerializeToString())
    decoded = checked_vector(message.values, [f"channel {i}" for i in range(len(values))])
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, np.float32(values))


def test_short_vector_names_the_first_missing_channel():
    with pytest.raises(VectorError, match=r"shape \(2,\), got \(1,\); the policy expects 'speed' at index 1"):
        checked_vector([0.0], NAMES)


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0], [[0.0, 1.0]], 0.0])
def test_other_shapes_are_refused(values):
    with pytest.raises(VectorError, match=r"shape \(2,\)"):
        checked_vector(values, NAMES)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_number_beyond_float32_is_refused_by_channel(bad):
    with pytest.raises(VectorError, match="'speed' at index 1"):
        checked_vector([0.0, bad], NAMES)


@pytest.mark.parametrize(
    "values",
    [[0.0], [0.0, 1.0, 2.0], [], [math.inf, -math.inf], [math.nan, 0.0], [0.0, -math.inf], [3e38, 3e38], [-0.0, 1e-45]],
)
def test_the_short_way_of_a_message_takes_and_refuses_what_the_long_one_does(values):
    numbers = pb.Observation(values=values).values
    try:
        expected = checked_vector(numbers, NAMES)
    except VectorError as error:
        with pytest.raises(VectorError, match=f"^{re.escape(str(error))}$"):
            message_vector(numbers, NAMES)
    else:
        found = message_vector(numbers, NAMES)
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes()


def described(**settings):
    return pb.DescribeResponse(
        observation=channels_to_proto(OBSERVATION),
        action=channels_to_proto(ACTION * 2),
        return_quantile_levels=[0.1, 0.5, 0.9],
        gradient_norm_levels=[0.5],
        sample_count=4,
        **({"calibrated": True, "observation_gradient": True} | settings),
    )


def summary():
    vector = np.random.default_rng(3).normal(size=20).astype(np.float32)
    return Summary(
        return_mean=float(vector[0]),
        return_std=float(vector[1]),
        return_quantiles_raw=vector[:3],
        return_quantiles_corrected=vector[10:13],
        return_cvar=float(vector[3]),
        return_below_threshold=float(vector[13]),
        gradient_mean=vector[4:6],
        gradient_std=vector[5:7],
        gradient_norm_quantiles=vector[7:8],
        gradient_sign_agreement=vector[6:8],
        gradient_resultant_length=float(vector[9]),
        critic_disagreement=float(vector[14]),
        data_distance=float(vector[15]),
        observation_gradient_mean=vector[16:18],
    )


def test_summary_survives_the_wire_exactly():
    sent = summary()
    message = pb.Summary.FromString(summary_to_proto(sent).SerializeToString())
    received = summary_from_proto(message, described())
    for field in dataclasses.fields(Summary):
        np.testing.assert_array_equal(getattr(received, field.name), getattr(sent, field.name), field.name)


def test_what_a_policy_does_not_serve_is_none_on_the_other_side_and_nothing_on_the_wire():
    sent = dataclasses.replace(summary(), return_quantiles_corrected=None, observation_gradient_mean=None)
    message = summary_to_proto(sent)
    assert not message.return_quantiles_corrected
    assert not message.observation_gradient_mean
    received = summary_from_proto(message, described(calibrated=False, observation_gradient=False))
    assert received.return_quantiles_corrected is None
    assert received.observation_gradient_mean is None


@pytest.mark.parametrize(
    ("field", "served"),
    [("return_quantiles_corrected", "calibrated"), ("observation_gradient_mean", "observation_gradient")],
)
def test_what_a_policy_does_not_serve_is_refused_where_it_comes(field, served):
    with pytest.raises(VectorError, match=f"{field} must have shape .0,., got"):
        summary_from_proto(summary_to_proto(summary()), described(**{served: False}))


@pytest.mark.parametrize(
    "field",
    [
        "return_quantiles_raw",
        "return_quantiles_corrected",
        "gradient_mean",
        "gradient_norm_quantiles",
        "observation_gradient_mean",
    ],
)
def test_summary_of_wrong_size_is_refused_by_field(field):
    message = summary_to_proto(summary())
    getattr(message, field).append(0.0)
    with pytest.raises(VectorError, match=f"{field} must have shape"):
        summary_from_proto(message, described())


def test_summary_that_is_not_finite_is_refused_by_field():
    message = summary_to_proto(summary())
    message.return_cvar = math.nan
    with pytest.raises(VectorError, match="'return_cvar'"):
        summary_from_proto(message, described())


def test_samples_keep_their_pairing_over_the_wire():
    random = np.random.default_rng(5)
    sent = Samples(
        returns=random.normal(size=4).astype(np.float32),
        action_gradients=random.normal(size=(4, 2)).astype(np.float32),
    )
    received = samples_from_proto(samples_to_proto(sent), described())
    np.testing.assert_array_equal(received.returns, sent.returns)
    np.testing.assert_array_equal(received.action_gradients, sent.action_gradients)
    short = samples_to_proto(sent)
    del short.action_gradients[-1]
    with pytest.raises(VectorError, match=r"shape \(8,\), got \(7,\); the policy expects 'sample 3 of torque'"):
        samples_from_proto(short, described())
