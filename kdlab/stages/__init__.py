"""The verbs of an experiment, one a file: `run(out, inputs, params, local)` fills the folder `out`; knows no keys.

Recipes import it; it may import every room but artifacts, heavy packages only inside `run` (recipes stay light).
To add one, write `<verb>.py` with `VERSION` and `run`, and use it in a plan under recipes/.
"""
