"""The life of a lease as steps: place, boot, run, collect, release; each with its clean-up."""
