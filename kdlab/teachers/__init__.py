"""Where the teacher's side of a loss comes from: a frozen model (later: an ensemble, a cache, a hub model).

Imports types and models; training and stages import it.
To add one: a file here whose class gives `__call__(batch) -> objectives' teacher side` like `frozen.FrozenTeacher`.
"""
