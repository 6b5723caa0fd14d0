"""Tables from what runs left behind: collect.py reads run.json, manifests and scores.json, table.py writes Markdown.

Imported by commands; imports artifacts only, and no torch: a table must come in a moment, on any machine.
To add a column, read it into Row in collect.py and name it in table.py.
"""
