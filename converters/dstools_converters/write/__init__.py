"""Write a checkpoint: jobs, their threads, the resumable writer and the files beside the shards."""
