"""A calibration of made-up numbers, every field different."""

from dst_core.calibration.result import Calibration, Energy, Estimate, Scores, Threshold, WarningSignal


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.02, high=value + 0.01)


def scores(shift: float, centre: str = "mean") -> Scores:
    return Scores(
        coverage=tuple(estimate(level + shift) for level in (0.5, 0.8, 0.9, 0.95)),
        width=(1.0 + shift, 2.0 + shift, 2.5 + shift, 3.0 + shift),
        crps=estimate(0.6 + shift),
        bias=estimate(-0.3 + shift),
        centre=centre,
    )


def made_up_calibration() -> Calibration:
    return Calibration(
        fingerprint="f" * 64,
        environment="Hopper-v5",
        perturbations=("dynamics=0.05",),
        sample_count=32,
        discount=0.99,
        episodes=400,
        test_episodes=300,
        first_seed=2_105_000_000,
        first_test_seed=2_110_000_000,
        ticks=20_000,
        test_ticks=15_000,
        quantile_levels=(0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975),
        positions=(-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0),
        std_floor=0.03,
        levels=(0.5, 0.8, 0.9, 0.95),
        raw=scores(-0.1),
        corrected=scores(0.005, "median"),
        training_critics=scores(-0.2),
        crps_samples=estimate(0.55),
        realised_mean=120.0,
        realised_std=30.0,
        pit=(0.075,) * 10 + (0.025,) * 10,
        energy=Energy(law=0.9, truth=0.8),
        false_alarm_rate=0.01,
        critic_disagreement=Threshold(value=3.5, alarm_rate=estimate(0.009)),
        data_distance=Threshold(value=0.4, alarm_rate=estimate(0.011)),
        thresholds_with_falls=None,
        falls=70,
        failure_horizon_s=1.0,
        failure_horizon_steps=125,
        warnings=tuple(
            WarningSignal(
                signal=signal, auc=estimate(auc), false_alarms=(0.0, 0.1, 0.5, 1.0), warned=(0.0, 0.4, auc, 1.0)
            )
            for signal, auc in (
                ("-return_cvar", 0.9),
                ("1 - gradient_resultant_length", 0.7),
                ("critic_disagreement", 0.8),
                ("data_distance", 0.85),
                ("-return_mean", 0.88),
            )
        ),
        no_warnings=None,
    )
