"""Pictures of the course, one module per notebook or topic; `workbench.plots` has those of every run."""
