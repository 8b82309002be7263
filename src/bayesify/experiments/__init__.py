"""The main job: methods x models x data x folds x seeds, each judged once, one record a cell.

suite.py       what to compare: from flags or a TOML file
choices.py     options of methods and likelihoods from text and tables; lists are grids
literature.py  published numbers to stand beside
cell.py        one method on one model, one fold of the data and one seed, and its identity
problems.py    the data and models of a suite, read and checked before any training
run.py         runs what is not done yet
measure.py     what a fitted posterior costs
results.py     results.jsonl, one line a finished cell or a published method
"""
