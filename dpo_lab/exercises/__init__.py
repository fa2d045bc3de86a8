"""The checks of the course's exercises: each prints what a right answer shows, or says what to try.

One room per notebook, named by its topic, and `checking` for what they share. `release` makes the student version
of the notebooks. A room loads when a name of it is first used.
"""

from importlib import import_module
from typing import Any

# Room → the names it gives to notebooks, in the order in which they are met.
_ROOMS: dict[str, tuple[str, ...]] = {
    "quickstart": ("check_share_of_wrong_labels", "check_starting_loss", "check_accuracy_and_margin"),
    "preferences": (
        "check_preference_probability",
        "check_bradley_terry_loss",
        "check_reward_gap",
        "check_comparisons_needed",
    ),
    "derivation": ("check_two_responses", "check_recovered_gaps", "check_shift", "check_beta_for_kl"),
    "loss": ("check_dpo_loss", "check_loss_slope", "check_share_behind_margin", "check_beta_for_margin"),
    "log_probabilities": ("check_token_logps", "check_mask_repair", "check_border", "check_shared_row"),
    "reference_cache": ("check_cache_key", "check_looks_stale", "check_rows_to_compute", "check_reference_bytes"),
    "training_loop": ("check_training_step", "check_accumulation", "check_warmup_share", "check_repaired_loop"),
    "gpu": ("check_useful_share", "check_clock", "check_bfloat16_logp", "check_peak_bytes"),
    "implicit_rewards": ("check_heaviest_token", "check_calibration_error", "check_best_answers", "check_mean_rewards"),
    "hyperparameters": ("check_honest_choice", "check_log_uniform", "check_seeds_needed"),
    "failures": (
        "check_first_moves",
        "check_resting_reference",
        "check_swapped_source",
        "mystery_runs",
        "check_diagnoses",
    ),
    "family": ("check_simpo_repair", "check_betas_for_gap", "check_resting_margins", "check_paired_difference"),
    "rlhf": ("check_kl_estimate", "check_rloo_advantages", "check_best_of_n", "check_reward_at_kl"),
    "applications": ("check_json_checker", "check_refusal_rates", "check_same_call", "check_attack_cost"),
    "labels": ("check_standing_choices", "check_kappa", "check_sides", "check_comparisons_to_tell"),
    "scaling": ("check_global_mean", "check_adapter_margins", "check_passes", "check_device_bytes"),
    "checking": ("NotYet",),
}


def _home(name: str) -> str | None:
    """The room of a name: from the table, or found in a room's own `__all__`."""
    for room, names in _ROOMS.items():
        if name in names:
            return room
    return None


def __getattr__(name: str) -> Any:
    if (room := _home(name)) is None:
        offered = ", ".join(n for names in _ROOMS.values() for n in names)
        raise AttributeError(f"module 'dpo_lab.exercises' has no attribute {name!r}; it offers {offered}")
    value = getattr(import_module(f"dpo_lab.exercises.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(name for names in _ROOMS.values() for name in names)
