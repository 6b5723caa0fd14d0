"""Search: from a model and sources to hypotheses, one batch (beam) or a whole file (translate).

May be imported by evaluation, stages and commands; imports types, models, data and deploy.
To add a way to search: a file beside beam.py, a field in schema.Decode and its use in translate.py.
"""
