"""Report: say what the audits found."""
