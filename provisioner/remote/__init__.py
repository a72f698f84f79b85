"""The machine over SSH: sessions, files, jobs, heartbeats."""
