"""What is minimised: one term a file (nll, word_kd); `reduce.py` sums them, `objective.py` weighs them.

Imports types only; training and stages import it. A term knows no padding, batches, ranks, weights or chunk sizes.
To add one: a class like `nll.Nll` (needs_teacher, __call__, formula) in a file here, and its conf/objective/.
"""
