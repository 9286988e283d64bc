"""
What makes a result traceable: what it depends on, which command made it, and how it is written.

Every other room may use this one.
"""
