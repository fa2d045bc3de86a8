"""Statistics of the course: paired seeds, methods at the same KL, where in an answer a decision falls, the jobs."""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "matched_kl":
        "SeedInterval compare_along compare_at_kl curves_of reach reward_at_kl rewards_at_kl seed_interval "
        "sentence",
    "paired_seeds": "Difference differences_from student_quantile",
    "where_decided": "margin_by_position margin_parts tokens_for_half",
})  # fmt: skip
