"""What an application needs of this system: the newest batch run in memory, and predictions that do not take it down.

``reloader`` follows a batch job's results, ``prediction`` asks the prediction service through the gateway, ``circuit`` is its
circuit breaker, ``embedded`` is the same model in the application's own process. docs/your-own-application.md shows them in use.
"""
