"""Names and units of MuJoCo state vectors, read from the model: joints, bodies and actuators in the model's order."""

from collections.abc import Mapping

import mujoco

NamedUnit = tuple[str, str]
UNKNOWN_UNIT = "unknown"

_FREE, _BALL, _SLIDE, _HINGE = (
    int(mujoco.mjtJoint.mjJNT_FREE),
    int(mujoco.mjtJoint.mjJNT_BALL),
    int(mujoco.mjtJoint.mjJNT_SLIDE),
    int(mujoco.mjtJoint.mjJNT_HINGE),
)


def observation_channels(model: mujoco.MjModel, structure: Mapping[str, int] | None) -> list[NamedUnit] | None:
    """Name the components of an observation laid out as Gymnasium's `observation_structure` says.

    Args:
        model: the `mujoco.MjModel`.
        structure: segment name -> its length, in order; `skipped_qpos` counts leading positions left out.

    Returns:
        (name, unit) per component, or None where the task does not report its layout. A segment whose length differs
        from the model's is named by its index.
    """
    if not structure:
        return None
    skipped = structure.get("skipped_qpos", 0)
    known = {
        "qpos": _positions(model)[skipped:],
        "qvel": _velocities(model),
        "cinert": _per_body(model, _INERTIA),
        "cvel": _per_body(model, _BODY_VELOCITY),
        "cfrc_ext": _per_body(model, _EXTERNAL_FORCE),
        "qfrc_actuator": _actuator_forces(model)[6:],  # without the free root joint
    }
    channels: list[NamedUnit] = []
    for segment, length in structure.items():
        if segment == "skipped_qpos":
            continue
        named = known.get(segment, [])
        if len(named) != length:
            named = [(f"{segment}_{index}", UNKNOWN_UNIT) for index in range(length)]
        channels += named
    return channels


def action_channels(model: mujoco.MjModel) -> list[NamedUnit]:
    """Name each actuator, or the joint it drives where it has no name, with the physical unit of one control unit."""
    channels = []
    for index in range(model.nu):
        joint = (
            int(model.actuator_trnid[index, 0])
            if model.actuator_trntype[index] == int(mujoco.mjtTrn.mjTRN_JOINT)
            else None
        )
        name = (
            model.actuator(index).name or (model.joint(joint).name if joint is not None else "") or f"actuator_{index}"
        )
        channels.append((name, _control_unit(model, index, joint)))
    return channels


def _control_unit(model: mujoco.MjModel, actuator: int, joint: int | None) -> str:
    kind = None if joint is None else int(model.jnt_type[joint])
    integrates = model.actuator_dyntype[actuator] == int(mujoco.mjtDyn.mjDYN_INTEGRATOR)
    if kind not in {_SLIDE, _HINGE} or integrates:
        return UNKNOWN_UNIT
    hinge = kind == _HINGE
    fixed_gain = model.actuator_gaintype[actuator] == int(mujoco.mjtGain.mjGAIN_FIXED)
    gain = float(model.actuator_gainprm[actuator, 0])
    gear = float(model.actuator_gear[actuator, 0])
    bias = model.actuator_biasprm[actuator]
    if fixed_gain and model.actuator_biastype[actuator] == int(mujoco.mjtBias.mjBIAS_NONE):
        return _scaled(gain * gear, "N m" if hinge else "N")
    if fixed_gain and model.actuator_biastype[actuator] == int(mujoco.mjtBias.mjBIAS_AFFINE):
        if bias[1] == -gain:
            return _scaled(1 / gear, "rad" if hinge else "m")
        if bias[1] == 0.0 and bias[2] == -gain:
            return _scaled(1 / gear, "rad/s" if hinge else "m/s")
    return UNKNOWN_UNIT


def _scaled(scale: float, unit: str) -> str:
    return unit if scale == 1.0 else f"{scale:g} {unit}"


def _joint_names(model: mujoco.MjModel) -> list[tuple[str, int]]:
    return [(model.joint(index).name or f"joint_{index}", int(model.jnt_type[index])) for index in range(model.njnt)]


def _positions(model: mujoco.MjModel) -> list[NamedUnit]:
    channels: list[NamedUnit] = []
    for name, kind in _joint_names(model):
        if kind == _FREE:
            channels += [(f"{name}_position_{axis}", "m") for axis in "xyz"]
        if kind in {_FREE, _BALL}:
            channels += [(f"{name}_orientation_{part}", "1") for part in "wxyz"]
        else:
            channels.append((f"{name}_position", "rad" if kind == _HINGE else "m"))
    return channels


def _velocities(model: mujoco.MjModel) -> list[NamedUnit]:
    channels: list[NamedUnit] = []
    for name, kind in _joint_names(model):
        if kind == _FREE:
            channels += [(f"{name}_velocity_{axis}", "m/s") for axis in "xyz"]
        if kind in {_FREE, _BALL}:
            channels += [(f"{name}_angular_velocity_{axis}", "rad/s") for axis in "xyz"]
        else:
            channels.append((f"{name}_velocity", "rad/s" if kind == _HINGE else "m/s"))
    return channels


def _actuator_forces(model: mujoco.MjModel) -> list[NamedUnit]:
    channels: list[NamedUnit] = []
    for name, kind in _joint_names(model):
        if kind == _FREE:
            channels += [(f"{name}_actuator_force_{axis}", "N") for axis in "xyz"]
        if kind in {_FREE, _BALL}:
            channels += [(f"{name}_actuator_torque_{axis}", "N m") for axis in "xyz"]
        else:
            channels.append(
                (f"{name}_actuator_{'torque' if kind == _HINGE else 'force'}", "N m" if kind == _HINGE else "N")
            )
    return channels


_INERTIA = [
    *((f"inertia_{axes}", "kg m2") for axes in ("xx", "yy", "zz", "xy", "xz", "yz")),
    *((f"mass_moment_{axis}", "kg m") for axis in "xyz"),
    ("mass", "kg"),
]
_BODY_VELOCITY = [
    *((f"angular_velocity_{axis}", "rad/s") for axis in "xyz"),
    *((f"linear_velocity_{axis}", "m/s") for axis in "xyz"),
]
_EXTERNAL_FORCE = [
    *((f"contact_torque_{axis}", "N m") for axis in "xyz"),
    *((f"contact_force_{axis}", "N") for axis in "xyz"),
]


def _per_body(model: mujoco.MjModel, quantities: list[NamedUnit]) -> list[NamedUnit]:
    """The quantities of every body but the world."""
    bodies = [model.body(index).name or f"body_{index}" for index in range(1, model.nbody)]
    return [(f"{body}_{name}", unit) for body in bodies for name, unit in quantities]
