"""The figures. Each is a function of a group that returns an SVG string, or None without data.

No pyplot, no global state. Import from the files.
"""
