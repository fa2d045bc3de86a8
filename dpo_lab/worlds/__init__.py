"""Places whose true reward is known, so that what DPO learns can be checked against the truth.

`tabular` is finite and exact: its optimum in closed form, what people say about it (`comparisons`), and policies that
learn from that (`learning`). `enumerable` puts a real transformer into such a world, `letters` lets it be
sampled from. `pocket` is a small chat world with a judge, for models of the course's size.
`instructions` is one for real models: requests with demands that a program can check, its judge, and pairs of a model's
own answers.
"""
