"""Other machines: how they come in, and what stands here for what is there.

On the first host `gate.py` lets hosts in, `far_children.py` gives them workers and masters, and each of these has a
`stand_in.py`. On a host that joins `agent.py` does as it is told; each worker or master there has a `party_thread.py`
with a `hosted_worker.py` or `hosted_master.py`, and all share a `workplace.py`. On both sides are `door.py`, by which
others come in, and `far_sessions.py`, from host to host. `first_host.py` says who is where, `words.py` what hosts may
say, `world.py` who has been started together; `probe.py`, `measured_end.py` and `measured_gloo.py` measure links.
"""
