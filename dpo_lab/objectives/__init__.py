"""What a step learns from beyond the plain pair: the base of all objectives on token ids, and options of two kinds.

base.py       token ids in order, cut, scored and named: what every objective shares
options.py    pairs: LD-DPO's discounted tails, WPO's weights, a reference that follows the policy
unpaired.py   single answers with a label, and the baseline of their batch
"""
