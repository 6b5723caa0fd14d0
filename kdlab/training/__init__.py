"""A student in training: `module.py` (one step), `optim.py`, `callbacks.py` (validation, resuming, progress), `fit.py`.

Imports types, models, teachers, objectives, data, strategies; only stages import it. No maths of a loss here.
To add a schedule: one function in `optim.py`; anything that watches training is a callback.
"""
