"""Everything that can be asked in SQL: tables from the files, and queries on them."""
