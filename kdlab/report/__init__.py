"""From runs to tables: collect, gather -> results.csv -> grid, summary, plots -> markdown, html, latex; claims of many.

Imported by commands; imports artifacts only, and no torch: a table must come in a moment, on any machine.
To add a column: Result in results.py, gather.py fills it, summary.py shows it; a picture is a function in plots.py.
"""
