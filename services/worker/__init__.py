"""Worker: durable background jobs and schedules. PostgreSQL holds the truth, each claim is fenced, progress is told as it is made."""
