"""Making data sets: folders, archives, tables and drawn shapes to records."""
