"""A panel that trains: turn the knobs, watch the curves, stop, compare with the runs before.

asked    the controls' values → a recipe
told     a training's events → words and a share of the way; the runs that were kept
knobs    the controls
panel    the layout and the wiring
"""
