"""Prediction on collections of any size, on one machine or a cluster, with Ray Data.

The images are divided into parts (`parts`), each of which becomes one Parquet file (`rows`). A part is predicted by one
process of Ray (`worker`), and its file appears as a whole or not at all. So the names of the files alone tell which
parts are done, and nothing is lost or doubled if a process, a machine or the whole command is killed (`run`).
"""
