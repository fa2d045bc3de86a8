"""The checks of the course's exercises: each prints what a right answer shows, or says what to try.

One room per notebook, named by its topic, and `checking` for what they share. `release` makes the student version
of the notebooks. A room loads when a name of it is first used.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "applications": "check_attack_cost check_json_checker check_refusal_rates check_same_call",
    "checking": "NotYet",
    "derivation": "check_beta_for_kl check_open_numbers check_recovered_gaps check_shift check_two_responses",
    "failures": "check_diagnoses check_first_moves check_resting_reference check_swapped_source mystery_runs",
    "family": "check_betas_for_gap check_paired_difference check_resting_margins check_simpo_repair",
    "gpu": "check_bfloat16_logp check_choice check_clock check_useful_share",
    "hyperparameters": "check_honest_choice check_log_uniform check_seeds_needed",
    "implicit_rewards": "check_best_answers check_calibration_error check_heaviest_token check_mean_rewards",
    "labels": "check_comparisons_to_tell check_kappa check_sides check_standing_choices",
    "log_probabilities": "check_border check_mask_repair check_shared_row check_token_logps",
    "loss": "check_beta_for_margin check_dpo_loss check_loss_slope check_share_behind_margin",
    "preferences": "check_bradley_terry_loss check_comparisons_needed check_preference_probability check_reward_gap",
    "quizzes": "Quiz",
    "quickstart": "check_accuracy_and_margin check_share_of_wrong_labels check_starting_loss",
    "reference_cache": "check_cache_key check_looks_stale check_reference_bytes check_rows_to_compute",
    "real_model": "check_both_orders check_guarded_demand check_nearest_pair",
    "rlhf": "check_best_of_n check_kl_estimate check_reward_at_kl check_rloo_advantages",
    "rounds": "check_mixed_share check_round check_round_pairs",
    "scaling": "check_adapter_margins check_device_bytes check_global_mean check_passes",
    "training_loop": "check_accumulation check_repaired_loop check_training_step check_warmup_share",
    "which_pairs": "check_easy_half check_noisy_push check_two_sets",
})  # fmt: skip
