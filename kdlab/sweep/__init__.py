"""A grid on this machine (local, runner) or on a SLURM cluster: points, their cost, jobs, scripts, states; no torch.

Imported by its command alone; imports artifacts and report, and what tells the size of a model. To ask the cluster
for something new: a field of schema.Cluster with its line in scripts.py.
"""
