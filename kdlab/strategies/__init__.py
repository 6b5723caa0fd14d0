"""How the work is spread over devices, one strategy a file: a function that gives Lightning's Trainer its arguments.

Imports types and models; training and stages import it. A strategy never changes a result.
To add one: a file here and its conf/strategy/; several processes also need `StepStream` to split a step over ranks.
"""
