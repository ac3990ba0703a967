"""Msgbus: live push. What changes in clusters, jobs and notices reaches whoever may see it, or a RESYNC says what was missed."""
