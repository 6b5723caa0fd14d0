"""A student in training: `module.py` (one step), `optim.py`, `callbacks.py` (validation, resuming, progress), `fit.py`.

Imports types, models, teachers, objectives, data, strategies; only stages import it. No maths of a loss here.
To add a schedule: a function in `optim.py` and its name in schema.py; what watches training is a callback.
"""
