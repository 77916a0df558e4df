"""Limits of channels as the manifest admits them."""

import json

import pytest
from pydantic import ValidationError

from server.manifest import Manifest


@pytest.fixture
def manifest(bundle):
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def test_sensor_that_never_varies_is_admitted(manifest):
    manifest["observation"][1].update(low=0.0, high=0.0)
    channel = Manifest.model_validate(manifest).observation[1]
    assert channel.low == channel.high == 0.0


def test_sensor_with_limits_the_wrong_way_round_is_refused(manifest):
    manifest["observation"][1].update(low=0.5, high=0.0)
    with pytest.raises(ValidationError, match=r"'velocity': low 0\.5 must not lie above high 0\.0"):
        Manifest.model_validate(manifest)


@pytest.mark.parametrize("low", [0.4, 0.5])
def test_actuator_that_cannot_move_is_refused(manifest, low):
    manifest["action"][1]["low"] = low
    with pytest.raises(ValidationError, match=rf"'elbow': low {low} must lie below high 0\.4"):
        Manifest.model_validate(manifest)
