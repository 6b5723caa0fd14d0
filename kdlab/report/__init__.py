"""From runs to tables: collect -> gather -> results.csv -> grid, summary, plots -> markdown, html, latex; table.py is for one run.

Imported by commands; imports artifacts only, and no torch: a table must come in a moment, on any machine.
To add a column, put it into Result in results.py, fill it in gather.py, show it in summary.py; a picture is one function in plots.py.
"""
