"""A panel that trains: turn the knobs, watch the curves, stop, compare with the runs before.

to_recipe      the controls' values → a recipe
status_text    a training's events → words and a share of the way; the runs in a folder
knobs          the controls
panel          the layout and the wiring
"""
