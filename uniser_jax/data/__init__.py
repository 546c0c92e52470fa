"""Photographs, real pairs, and the Grain pipeline that turns them into batches of edits."""
