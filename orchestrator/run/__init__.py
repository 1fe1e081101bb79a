"""The verbs: run trials, judge, bisect, expand a matrix, profile, diagnose."""
