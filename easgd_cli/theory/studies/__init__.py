"""The studies, one file each: from settings to tables, findings and pictures."""
