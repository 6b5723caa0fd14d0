"""What is minimised: one term a file (nll, word_kd); `reduce.py` sums them, `objective.py` weighs them.

Imports types only; training and stages import it. A term knows no padding, batches, ranks, weights or chunk sizes.
To add one: a file here, a callable `(student_logits_NV, teacher_logits_NV, tgt_N) -> nats_N`, and its conf/objective/.
"""
