import numpy as np
import pytest

from protos import policy_pb2 as pb
from protos.codec import samples_to_proto, summary_to_proto
from server.bundle import load_bundle
from server.decision_template import DecisionTemplate
from server.runtime import Detail, Runtime
from server.served_policy import Decision


@pytest.fixture(scope="module", params=["bundle", "uncalibrated"])
def runtime(request):
    return Runtime(load_bundle(request.getfixturevalue(request.param)), "cpu")


@pytest.mark.parametrize("detail", Detail)
def test_a_row_becomes_the_message_that_its_fields_would(runtime, detail):
    layout = runtime.layouts[detail]
    template = DecisionTemplate(layout)
    rng = np.random.default_rng(0)
    for row in (np.zeros(layout.width, np.float32), *rng.normal(size=(20, layout.width)).astype(np.float32)):
        decision = Decision(row=row, layout=layout, selected=None, queue_ns=0, inference_ns=0, own_ns=0)
        expected = pb.Decision(
            action=decision.action.tolist(),
            summary=None if decision.summary is None else summary_to_proto(decision.summary),
            samples=None if decision.samples is None else samples_to_proto(decision.samples),
        )
        written = pb.Decision.FromString(template.serialised(row))
        assert written.SerializeToString() == expected.SerializeToString() or written == expected


@pytest.mark.parametrize("detail", Detail)
def test_a_bound_row_has_the_bits_of_a_plain_run(runtime, detail):
    session = runtime._actor if detail is Detail.NONE else runtime._policy
    for observation in np.random.default_rng(1).normal(size=(5, 1, 3)).astype(np.float32):
        plain = session.run(list(runtime.outputs[detail]), {"observation": observation})
        for found, expected in zip(runtime.infer(observation, detail), plain, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_row_is_not_overwritten_by_the_next(runtime):
    first = runtime.rows(np.float32([[0.1, 0.2, 0.3]]), Detail.SUMMARY)
    kept = first.copy()
    runtime.rows(np.float32([[0.9, -0.2, 0.5]]), Detail.SUMMARY)
    np.testing.assert_array_equal(first, kept)


def test_layout_splits_what_it_joined(runtime):
    layout = runtime.layouts[Detail.SAMPLES]
    rows = np.random.default_rng(2).normal(size=(2, 3, layout.width)).astype(np.float32)
    np.testing.assert_array_equal(layout.join(layout.split(rows), axes=2), rows)
    assert [layout.name_at(place.start) for place in layout.places.values()] == list(layout.names)
