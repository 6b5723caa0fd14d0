"""Content-addressed results: what a step is (stage.py) and where its result lies (store.py); no torch.

Imported by recipes, report and commands; imports errors, runtime, files only, and knows no stage by name.
To add a kind of result, add a stage in kdlab/stages and a Step in kdlab/recipes: nothing changes here.
"""
