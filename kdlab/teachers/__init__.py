"""Where the teacher's side of a loss comes from: a frozen model (later: an ensemble, a cache, a hub model).

Imports types and models; training and stages import it.
To add one: a class like `frozen.FrozenTeacher` (__call__(batch) -> ModelOutput, head()) in a file here.
"""
