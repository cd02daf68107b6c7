"""Everything that is computed from runs: tables, figures, pages, studies; and diagnostics."""
