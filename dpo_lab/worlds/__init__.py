"""Places whose true reward is known, so that what DPO learns can be checked against the truth.

`tabular` is finite and exact; `pocket` is a small chat world with a judge.
"""
