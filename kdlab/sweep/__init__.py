"""A grid on a SLURM cluster: from points to jobs, scripts, their submission and their state; no torch.

Imported by its command alone; imports artifacts. To ask the cluster for something new: a field of schema.Cluster with
its line in scripts.py.
"""
