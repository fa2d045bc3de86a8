"""Pictures of the course, one module per topic; `workbench.plots` has those of every run.

preferences, finite_world, loss    the derivation: comparisons, the optimum, what a pair costs
log_probabilities, cache           log π of an answer; the reference
steps, likelihoods, speed          one optimiser step; where log-probs go; time and memory
quality, ridge, reward_quality     answers before and after; margins; implicit rewards
hyperparameter_map, failures       β × learning rate; training that goes wrong
family, frontier, jobs             other losses; DPO against RLHF; four jobs
labels, scaling                    labelling; several devices
inputs                             checks of what a picture is given
"""
