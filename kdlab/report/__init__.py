"""From runs to tables: collect -> gather -> results.csv -> grid, summary, plots -> markdown, html, latex.

Imported by commands; imports artifacts only, and no torch: a table must come in a moment, on any machine.
table.py is for one run. To add a column: Result in results.py, gather.py, summary.py; a picture: plots.py.
"""
