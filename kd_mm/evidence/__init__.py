"""From runs to tables: what was trained, and what it reached beside what was published."""
