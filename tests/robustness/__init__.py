"""A bench of bad input and faults: wrong arguments, damaged files, killed runs and signals.

`python -m tests.robustness` runs thousands of cases and prints what was tried, what held and each
fault; `test_robustness.py` runs some hundred of them.
"""
