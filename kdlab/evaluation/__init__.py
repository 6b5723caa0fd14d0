"""Scores of translations (sacrebleu) and what they cost (efficiency).

May be imported by stages, and by commands that show it; imports types, decoding and data.
To add a metric: a file here with a function like `sacrebleu.score`; its name in schema.Evaluate and in report/.
"""
