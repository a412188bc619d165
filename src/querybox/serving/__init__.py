"""The HTTP server of `querybox serve`: a detector that answers requests, several of them at once.

A request goes through these files: `connection` (one TCP connection), `access` (access control), `app` (the routes),
`uploads` (its images, in memory), `service` (limits, and the deadline), `batches` (images that share a
forward pass), `workers` (the threads that run the model), `answers` and `problems` (what is sent back).
"""
