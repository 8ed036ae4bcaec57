"""Other machines: how they join a run, and what stands on the first host for their workers and masters.

On the first host `gate.py` lets hosts in, `far_children.py` gives them workers and masters, and each of these has a
`stand_in.py`. On a host that joins, `agent.py` does what the first host asks; each worker or master there has a
`party_thread.py` with a `hosted_worker.py` or `hosted_master.py`, and all share a `workplace.py`. Hosts of both kinds
have `door.py`, which listens, and `far_sessions.py`, the sessions between hosts. `first_host.py` says what is on the
first host, `words.py` what hosts may say, `world.py` which processes have been started together; `probe.py`,
`measured_end.py` and `measured_gloo.py` measure links.
"""
