import numpy as np
import pytest

from server.oip.models import PolicyModel
from server.oip.tensors import SentTensor
from server.runtime import Detail
from server.served_policy import ServedPolicy
from tests.server import small_bundle

OBSERVATION = SentTensor(name="observation", datatype="FP32", shape=[1, 3], content=[0.1, 0.2, 0.3])
CANDIDATES = SentTensor(name="action", datatype="FP32", shape=[1, 2, 2], content=[0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("outputs", "detail"),
    [
        (("action",), Detail.NONE),
        (("action", "return_mean"), Detail.SUMMARY),
        (("return_cvar",), Detail.SUMMARY),
        ((), Detail.SUMMARY),
        (("return_samples",), Detail.SAMPLES),
        (("action", "gradient_samples"), Detail.SAMPLES),
    ],
)
def test_requested_outputs_choose_the_least_that_holds_them(runtime, outputs, detail):
    question = PolicyModel(ServedPolicy(runtime)).question((OBSERVATION,), outputs)
    assert question.detail is detail
    assert question.candidates is None
    assert question.outputs == (outputs or ("action", *small_bundle.SUMMARY[:-2]))


@pytest.mark.parametrize(
    ("outputs", "detail"),
    [((), Detail.SUMMARY), (("return_mean",), Detail.SUMMARY), (("return_samples",), Detail.SAMPLES)],
)
def test_candidates_are_assessed(runtime, outputs, detail):
    question = PolicyModel(ServedPolicy(runtime)).question((CANDIDATES, OBSERVATION), outputs)
    assert question.detail is detail
    assert question.outputs == (outputs or small_bundle.SUMMARY[:-2])
    np.testing.assert_array_equal(question.candidates, np.float32([[[0.0, 0.1], [0.2, 0.3]]]))


def test_metadata_is_what_an_uncalibrated_policy_really_gives(uncalibrated):
    from server.bundle import load_bundle
    from server.runtime import Runtime

    model = PolicyModel(ServedPolicy(Runtime(load_bundle(uncalibrated), "cpu")))
    names = [tensor.name for tensor in model.metadata().outputs]
    assert names == ["action", *(name for name in small_bundle.SUMMARY if name not in small_bundle.OPTIONAL)]
