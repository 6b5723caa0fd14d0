"""Parallel text on its way to batches: sources, cleaning, tokens, rows on disk, pseudo-labels, steps.

Imports only types, errors, runtime and files; decoding, training, evaluation and stages may import it.
To add a source of text, write a class like those of corpus.py (anywhere) and name it as `_target_` in conf/data/.
"""
