"""How good a model's images are: scores against real ones, with their uncertainty and all that is needed to get them again.

scores.py is numbers from features; reference.py the real images; report.py one model scored and shown; search.py the best
guidance and average; watching.py a few samples scored while training goes on.
"""
