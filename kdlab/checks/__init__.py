"""What `python -m kdlab.check` finds: `material.py` (what it runs on), one file for each kind of check, `table.py`.

Imports types, data, models, objectives, teachers, strategies, training, artifacts; only the command imports it.
To add one: a function (Material) -> Finding in a file here, and its entry in `suite.py`: what a failure means.
"""
