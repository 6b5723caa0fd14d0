"""Search: from a model and sources to hypotheses, one batch (beam) or a whole file (translate).

May be imported by evaluation, stages and commands; imports types, models and data.
To add a decode engine: a file here with the functions of translate.py, and a YAML of its name in conf/decode/.
"""
