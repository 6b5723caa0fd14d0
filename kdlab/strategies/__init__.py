"""How the work is spread over devices, one way a file (strategy.py: what each must do; ranks.py: what processes tell).

Imports types and models; training and stages import it. A strategy never changes a result.
To add one: a file here, its conf/strategy/ and its rows in tests/parity.py.
"""
