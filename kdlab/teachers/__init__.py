"""Where the teacher's side of a loss comes from: a frozen model, or a cache of what it said (later: an ensemble).

Imports types and models; training and stages import it.
To add one: a class in a file here with `guide(batch, split, padded)`, as frozen.FrozenTeacher and cached.CachedTeacher.
"""
