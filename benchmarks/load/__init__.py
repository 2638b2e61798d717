"""Load: what a service holds under many clients, of which some are slow and some leave.

`python -m benchmarks.load` starts a service and, in an environment of its own, locust; every
request has an id, and is accounted for twice, by the client and in the service's log. `--soak 20`
mixes all scenarios for so many minutes and looks at memory, threads and files.
"""
