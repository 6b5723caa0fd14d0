"""Translation models: the transformer, its attention and decoder state, how it starts and its folder on disk.

May be imported by every room above the ground floor; imports types alone (and errors, runtime, files).
To add a way to initialise: a function of (model, seed) as in init.py, or of (model, seed, teacher), and conf/init/.
"""
