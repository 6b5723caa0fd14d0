"""kdlab: knowledge-distillation experiments on PyTorch and Lightning, configured by Hydra.

Start at `run.py` (the one command); DECISIONS.md says why things are as they are.
"""

__version__ = "0.1.0"
