"""From `results.jsonl` to tables, figures and one self-contained page. Reads records only.

Import from the files: `from bayesify.experiments.report.page import write`.
"""
