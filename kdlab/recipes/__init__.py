"""Which steps run in which order: one recipe a file (train_only, word_kd, seq_kd, hybrid), each a `plan(cfg)` of Steps.

Imported by commands only; imports stages and artifacts. Knows no torch: a plan is made for every `dry_run`.
To add one: a file here that lists its steps from steps.py, and conf/recipe/<name>.yaml.
"""
