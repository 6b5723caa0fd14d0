"""Export: a trained model in the format of another engine, so that it gives there what it gives here.

May be imported by stages and commands; imports types and models (and errors, runtime, files).
To add a format: a file beside ctranslate2.py that writes a folder, and a test that compares outputs and scores.
"""
