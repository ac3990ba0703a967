"""Msgbus: live push. What changes in clusters, jobs and notices reaches whoever subscribed and may see it, or a RESYNC says what was missed."""
