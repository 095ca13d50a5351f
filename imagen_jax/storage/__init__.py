"""Reading and writing files, on disks and in buckets."""
